"""Make a file in SQuAD 2.0's format from one in SQuAD 1.1's: some questions move to another paragraph of their article.

python benchmarks/unanswerable.py dev-v1.1.json.gz dev-v2.json.gz [--share 0.5] [--seed 0]

A moved question loses its answers. It goes only where none of their texts occurs, spaces, signs and case aside; where
no paragraph of the article is such, a question stays. As in SQuAD 2.0 the paragraph is about the question's subject;
but nobody wrote these questions to mislead, and a few may be answered there in other words.
"""

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

from policyprune.tasks.tables import letters, text_of


def unanswerable(articles: list[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The articles with a share of all questions moved, as far as they can be; the moved ones end their paragraph."""
    chance = random.Random(seed)
    texts = [[letters(paragraph["context"]) for paragraph in article["paragraphs"]] for article in articles]
    places = [
        (a, p, question)
        for a, article in enumerate(articles)
        for p, paragraph in enumerate(article["paragraphs"])
        for question in paragraph["qas"]
    ]
    order = list(range(len(places)))
    chance.shuffle(order)
    target: dict[int, int] = {}  # of the question with this number: a paragraph of the same article
    for number in order:
        a, home, question = places[number]
        answers = [letters(answer["text"]) for answer in question["answers"]]
        free = [p for p, text in enumerate(texts[a]) if p != home and not any(answer in text for answer in answers)]
        if free and len(target) < round(share * len(places)):
            target[number] = chance.choice(free)
    asked: list[list[list[dict[str, Any]]]] = [[[] for _ in article["paragraphs"]] for article in articles]
    for number, (a, home, question) in enumerate(places):
        if number not in target:
            asked[a][home].append({**question, "is_impossible": False})
    for number, p in sorted(target.items()):
        a, _, question = places[number]
        asked[a][p].append({**question, "answers": [], "is_impossible": True})
    return [
        {**article, "paragraphs": [{**old, "qas": new} for old, new in zip(article["paragraphs"], own, strict=True)]}
        for article, own in zip(articles, asked, strict=True)
    ]


def main() -> None:
    """Read, move, write, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a file in SQuAD 1.1's format, .json or .json.gz")
    parser.add_argument("target", type=Path, help="the file to write, .json or .json.gz")
    parser.add_argument("--share", type=float, default=0.5, help="of the questions that move (default 0.5, as in dev)")
    parser.add_argument("--seed", type=int, default=0, help="which ones, and where to (default 0)")
    arguments = parser.parse_args()
    articles = unanswerable(json.loads(text_of(arguments.source))["data"], arguments.share, arguments.seed)
    content = json.dumps({"version": "v2.0", "data": articles}, ensure_ascii=False).encode()
    arguments.target.write_bytes(gzip.compress(content, mtime=0) if arguments.target.suffix == ".gz" else content)
    asked = [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    print(f"{sum(qa['is_impossible'] for qa in asked):,} of {len(asked):,} questions have no answer")


if __name__ == "__main__":
    main()
