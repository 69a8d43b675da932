from jumar.infer.cli import main

main()
