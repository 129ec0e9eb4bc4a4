"""The scripts by which shells ask for completion, and where each shell reads its own."""

from __future__ import annotations

import os
from typing import NamedTuple

from vlmcache.errors import UsageError

_BASH = """\
_vlmcache_completion() {
    local word files=1
    COMPREPLY=()
    while IFS= read -r word; do
        case $word in
            words) files= ;;
            files) ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done < <(_VLMCACHE_COMPLETE=bash _VLMCACHE_LINE="${COMP_LINE:0:COMP_POINT}" \\
        _VLMCACHE_BREAKS="$COMP_WORDBREAKS" "${1/#\\~/$HOME}" 2>/dev/null)
    if [ -n "$files" ]; then
        compopt -o default
    fi
}

complete -F _vlmcache_completion vlmcache
"""
# zsh reads the file at the first Tab, as the function of that name: it has to answer that Tab too.
_ZSH = """\
#compdef vlmcache

_vlmcache() {
    local -a answer
    answer=("${(@f)$(_VLMCACHE_COMPLETE=zsh _VLMCACHE_LINE="${words[1,$CURRENT]}" \\
        ${~words[1]} 2>/dev/null)}")
    if [[ $answer[1] != words ]]; then
        _files
        return
    fi
    shift answer
    (( $#answer )) && _describe vlmcache answer -M 'm:{[:lower:][:upper:]}={[:upper:][:lower:]}'
}

compdef _vlmcache vlmcache
if [[ $funcstack[1] == _vlmcache ]]; then
    _vlmcache "$@"
fi
"""
_FISH = """\
function __vlmcache_complete
    set -l answer (env _VLMCACHE_COMPLETE=fish _VLMCACHE_LINE=(commandline -cp | string collect) \\
        vlmcache 2>/dev/null)
    if test "$answer[1]" = words
        set -e answer[1]
        string join -- \\n $answer
    else
        __fish_complete_path (commandline -ct)
    end
end

complete --command vlmcache --no-files --arguments '(__vlmcache_complete)'
"""


class _Shell(NamedTuple):
    script: str
    path: str
    """Where the script belongs, below the home folder."""
    start: str = ""
    """The file that the shell reads when it starts, if it has to name the script."""
    line: str = ""
    """The line that this file needs."""
    mark: str = ""
    """What is in the file if it has such a line already."""


SHELLS = {
    "bash": _Shell(
        _BASH,
        ".bash_completions/vlmcache.sh",
        ".bashrc",
        "source ~/.bash_completions/vlmcache.sh",
        ".bash_completions/vlmcache.sh",
    ),
    "zsh": _Shell(
        _ZSH,
        ".zfunc/_vlmcache",
        ".zshrc",
        "fpath+=~/.zfunc; autoload -Uz compinit; compinit",
        "fpath+=~/.zfunc",
    ),
    "fish": _Shell(_FISH, ".config/fish/completions/vlmcache.fish"),
}


def current_shell() -> str:
    """Return the name of the shell that started this process.

    Raises:
        UsageError: there is no completion for it.
    """
    import psutil

    names = [parent.name() for parent in psutil.Process().parents()]
    names.append(os.path.basename(os.environ.get("SHELL", "")))
    for name in names:
        if name in SHELLS:
            return name
    raise UsageError("completion is for bash, zsh and fish", "type it in one of these shells")


def install(name: str) -> str:
    """Write the script where a shell reads it, and return its path.

    Raises:
        OSError: that cannot be written.
    """
    shell, home = SHELLS[name], os.path.expanduser("~")
    path = os.path.join(home, shell.path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(shell.script)
    if shell.start:
        with open(os.path.join(home, shell.start), "a+", encoding="utf-8") as file:
            file.seek(0)
            lines = file.read()
            if shell.mark not in lines:
                file.write(("" if lines.endswith("\n") or not lines else "\n") + shell.line + "\n")
    return path
