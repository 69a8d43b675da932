from jumar.eval.cli import main

main()
