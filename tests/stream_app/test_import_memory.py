"""The memory of a whole import by the system's count, compiled kernels with it: flat where the bounds are small.

Into a log that forgets: what RocksDB holds is the log's matter (``test_rocks_memory.py``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
N_ROWS, REMEMBERED = 200_000, 20_000
MORE_MB = 8.0
"""105 bytes for each row of the second part, and less than what its events take by far; the heap's free pages come to 3 MB."""
# Imports UserBehavior.csv of as many users as items, so that hardly any pair comes twice: prints (part of the work, MB).
IMPORT = """
import json, sys
from pathlib import Path
from stream_app.importers.registry import importer_kind
from stream_app.importers.run import run_import
from stream_app.topics.memory import MemoryLog
folder, remembered = Path(sys.argv[1]), int(sys.argv[2])
held = []
def anonymous():
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("RssAnon")) / 1_024
def forget(done, total, unit):
    for topic in map(log.topic, log.topics()):
        topic.trim(0, topic.end(0))
    held.append((done / total, anonymous()))
log = MemoryLog()
options = {"partitions": 1, "warm_up": 1_000, "window": 2_000, "remembered": remembered}
chosen = importer_kind("taobao").read_options(options)
run_import("taobao", [folder / "UserBehavior.csv"], log, None, chosen, on_progress=forget)
print(json.dumps(held))
"""


def test_an_import_holds_no_more_at_its_end_than_past_its_middle(tmp_path: Path) -> None:
    with (tmp_path / "UserBehavior.csv").open("w") as file:
        for n in range(N_ROWS):
            mixed = n * 2_654_435_761 % (1 << 32)
            file.write(f"{mixed % 3_000},{(mixed >> 12) % 3_000},1,pv,{1_511_600_000 + mixed % 500_000}\n")
    words = [sys.executable, "-c", IMPORT, str(tmp_path), str(REMEMBERED)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    held = json.loads(done.stdout)
    middle = max(mb for share, mb in held if 0.5 < share < 0.65)
    assert max(mb for share, mb in held if share > 0.65) < middle + MORE_MB, held[:: len(held) // 20]
