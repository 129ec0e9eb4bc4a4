"""`vlmcache`, and `python -m vlmcache`."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
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
    run()


if __name__ == "__main__":
    main()
