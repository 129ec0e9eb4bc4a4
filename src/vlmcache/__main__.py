"""`vlmcache`, and `python -m vlmcache`."""

import gc
import os
import sys
from typing import NoReturn

_COLLECT_AFTER = 20_000
"""Values that may be made until the collector looks for cycles: this process is a short one."""


def main() -> NoReturn:
    """Run the command line."""
    # What is imported stays to the end, and need not be looked through again and again.
    gc.disable()
    try:
        if "_VLMCACHE_COMPLETE" in os.environ:
            from vlmcache.cli.completion import answer

            answer()
            sys.exit()
        from vlmcache.cli.main import main as run
    except KeyboardInterrupt:
        # Ctrl-C before the one place that answers for failures is there.
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    gc.enable()
    run()


if __name__ == "__main__":
    main()
