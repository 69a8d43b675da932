from jumar.chain.cli import main

main()
