"""lm-eval learns of the model `jumar`: its command, through `jumar_eval_lm_eval.pth`, or `python -m jumar.eval.lm_eval`.

lm-eval has no entry point for models. The .pth file beside this package puts into every Python process a finder that knows one
name, lm_eval.models; whoever imports that gets it from here, and the model with it. Nothing else is imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

NAME, MODEL = "jumar", "jumar.eval.harness:JumarLM"


def register() -> None:
    """Names our model in lm-eval's registry; it is imported when it is asked for. Before 0.4.10 there was no such registry."""
    from lm_eval.api import registry

    models = getattr(registry, "model_registry", None)
    if models is not None and NAME not in models:
        models.register(NAME, target=MODEL)


class Loader(SourceFileLoader):
    """lm_eval.models as it is, and our model."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        register()


def find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Where lm_eval.models is; the .pth file calls it."""
    spec = PathFinder.find_spec(name, path)
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        spec.loader = Loader(spec.loader.name, spec.loader.path)
    return spec


def main() -> None:
    """lm-eval's command, with our model."""
    from jumar.schema.cli import run

    run(_command, "jumar.eval.lm_eval")


def _command(**_: object) -> None:
    from jumar.schema.errors import Exit, ToolError

    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as fault:
        if fault.name is None or not fault.name.startswith("lm_eval"):
            raise
        hint = 'pip install "jumar-eval[lm-eval]"'
        raise ToolError("lm-eval is not installed", hint=hint, code=Exit.ENVIRONMENT) from None
    import lm_eval.models  # noqa: F401  # whose registry is then not empty, and would not be filled later

    register()
    sys.argv[0] = "lm_eval"
    cli_evaluate()


if __name__ == "__main__":
    main()
