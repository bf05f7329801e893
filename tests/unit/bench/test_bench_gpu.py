"""The script for a GPU, with tiny models on the CPU: it must not be on a lent machine that it turns out broken."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import bench
from bench.architectures import ARCHITECTURES
from bench.gpu import Budget, Report, measure

MODULES = sorted(file.stem for folder in bench.__path__ for file in Path(folder).glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_can_be_started(name):
    importlib.import_module(f"bench.{name}")


@torch.no_grad()
def test_each_piece_is_measured_and_told(capsys):
    report = Report({"device": "cpu"})
    measure(ARCHITECTURES[0], Budget(8.0), report, torch.device("cpu"), toy=True)
    report.end("done")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    pieces = told["models"][ARCHITECTURES[0].name]
    assert pieces["picture"]["picture_s"] > 0
    assert pieces["forward"]["ms"]["2"] > 0
    assert pieces["ours"]["row_limit"] >= 1
    assert pieces["saturation"]["ours_per_s"] > 0
