"""`vlmcache`, and `python -m vlmcache`."""

import gc
import os
import sys
from typing import NoReturn

_COLLECT_AFTER = 20_000
"""Objects that may be made before the collector looks for cycles: this process is short-lived."""


def main() -> NoReturn:
    """Run the command line."""
    # Imported modules live until the end: searching them for garbage would be wasted time.
    gc.disable()
    try:
        if "_VLMCACHE_COMPLETE" in os.environ:
            from vlmcache.cli.completion import answer

            answer()
            sys.exit()
        from vlmcache.cli.main import main as run
    except KeyboardInterrupt:
        # Ctrl-C before `cli.main`, which reports all failures, is imported.
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    gc.enable()
    run()


if __name__ == "__main__":
    main()
