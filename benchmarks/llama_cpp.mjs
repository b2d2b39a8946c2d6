// One request to llama.cpp: node llama_cpp.mjs <file.gguf> <request as JSON>; prints one line of JSON.
import {getLlama} from "node-llama-cpp";

const [file, text] = process.argv.slice(2);
const request = JSON.parse(text);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const size = (request.ids?.length ?? 0) + (request.continue ?? 0) + 16;
const context = await model.createContext({contextSize: Math.max(256, size), threads: request.threads ?? 1});
const sequence = context.getSequence();
const found = {};

if (request.text !== undefined) {
    found.tokens = model.tokenize(request.text);
}
if (request.continue) {  // greedy continuation of `ids`, past the end of the text too
    found.continued = [];
    const began = performance.now();
    let first;
    for await (const token of sequence.evaluate(request.ids, {temperature: 0, yieldEogToken: true})) {
        first ??= performance.now();
        found.continued.push(token);
        if (found.continued.length >= request.continue)
            break;
    }
    found.first = (first - began) / 1000;
    found.rest = (performance.now() - first) / 1000;
}
if (request.prefill) {  // seconds to read `ids`, that many times
    const began = performance.now();
    for (let repeat = 0; repeat < request.prefill; repeat++) {
        await sequence.clearHistory();
        await sequence.evaluateWithoutGeneratingNewTokens(request.ids);
    }
    found.prefill = (performance.now() - began) / 1000;
}
if (request.score) {  // probability of each of `ids` but the first; a few at a time, each holds the whole vocabulary
    await sequence.clearHistory();
    found.probabilities = [];
    for (let place = 0; place < request.ids.length - 1; place += 16) {
        const input = request.ids.slice(place, Math.min(place + 16, request.ids.length - 1)).map((token) => [token, {
            generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}
        }]);
        const outputs = await sequence.controlledEvaluate(input);
        outputs.forEach((own, index) => {
            found.probabilities.push(own.next.probabilities.get(request.ids[place + index + 1]) ?? 0);
        });
    }
}
console.log(JSON.stringify(found));
process.exit(0);
