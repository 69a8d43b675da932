"""NPU.md says of torch-npu's mapping what its source says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from jumar.device.testing.wheels import torch_npu_mapping

PAGE = Path(__file__).parents[1] / "NPU.md"


def rows(state):
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[2] == state:
            yield from re.findall(r"`([^`]+)`", cells[1])


def copied(sources):
    """Names of torch.npu that are copied over torch.cuda's."""
    tree = ast.parse(sources["torch_npu/npu/__init__.py"])
    named = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return set(ast.literal_eval(named[0]))


def test_what_is_mapped_is_mapped():
    sources = torch_npu_mapping()
    transfer, names = sources["torch_npu/contrib/transfer_to_npu.py"], copied(sources)
    assert "['cuda', torch_npu.npu]" in transfer
    assert "for attr in patch.__all__:" in sources["torch_npu/_init/patches/monkey_patches.py"]
    mapped = list(rows("mapped"))
    assert len(mapped) > 30
    for name in mapped:
        owner, _, last = name.rpartition(".")
        assert (owner == "torch.cuda" and last in names) or re.search(rf"\b{last}\b", transfer), name


def test_what_is_mended_or_not_reached_is_not_mapped():
    sources = torch_npu_mapping()
    transfer, names = sources["torch_npu/contrib/transfer_to_npu.py"], copied(sources)
    assert "torch.Tensor.type" not in transfer
    assert "'type'" not in transfer
    assert not {"nvtx", "default_generators", "_lazy_call", "_lazy_init"} & names
    assert "nvtx" not in transfer
