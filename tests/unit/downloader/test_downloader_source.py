import io
import subprocess
import sys
from pathlib import Path

from downloader.events import Events
from downloader.hub import Hub
from downloader.local import Local
from downloader.settings import parse
from downloader.source import open_source

FLAGS = ["--model-id", "org/name", "--root", "/x"]


def test_the_hub_unless_a_directory_is_given() -> None:
    events = Events(io.StringIO())
    assert isinstance(open_source(parse(FLAGS, {}), events), Hub)
    assert isinstance(open_source(parse([*FLAGS, "--source", "/y"], {}), events), Local)


def test_an_air_gapped_run_does_not_even_import_huggingface_hub(tmp_path: Path) -> None:
    code = "import sys, downloader.__main__ as m; m.main(sys.argv[1:]); sys.exit('huggingface_hub' in sys.modules)"
    flags = ["--model-id", "a/b", "--root", str(tmp_path), "--source", str(tmp_path / "absent")]
    assert subprocess.run([sys.executable, "-c", code, *flags], capture_output=True).returncode == 0
