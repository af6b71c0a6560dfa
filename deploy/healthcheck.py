"""Healthy means: the metrics answer.

A worker or trainer that stalls ends itself (its watchdog, its guard); one that does not answer hangs.
"""

import os
import sys
import urllib.request

PORT = os.environ.get("FRESHET_METRICS_PORT", "9108")

try:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=4) as answer:
        sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"no metrics on port {PORT}: {error}")
