def run(config, folder):
    print(config, folder)
