"""Real text to train on, this project's own pages in English and Chinese, a document each: pages.py FILE.jsonl"""

import json
import sys
from pathlib import Path

pages = sorted([*Path().glob("README*.md"), *Path("docs").glob("**/*.md"), *Path("packages").glob("*/README.md")])
with open(sys.argv[1], "w", encoding="utf-8") as out:
    out.writelines(json.dumps({"text": page.read_text(encoding="utf-8")}, ensure_ascii=False) + "\n" for page in pages)
print(f"{len(pages)} pages")
