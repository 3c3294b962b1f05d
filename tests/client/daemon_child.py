# SPDX-License-Identifier: Apache-2.0
"""The daemon with an app of the tests: `python -m tests.client.daemon_child HOME`."""

import sys
from pathlib import Path

from client.daemon import serve
from client.site_home import SiteHome

if __name__ == "__main__":
    serve(SiteHome.find(Path(sys.argv[1])), sys.stderr, "tests.client.site_apps:app")
