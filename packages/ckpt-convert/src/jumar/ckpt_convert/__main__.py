from jumar.ckpt_convert.cli import main

main()
