from jumar.data_prep.cli import main

main()
