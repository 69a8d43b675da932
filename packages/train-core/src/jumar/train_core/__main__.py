from jumar.train_core.cli import main

main()
