"""Every finding code and error code: what it means, and what to do about it.

`vlmcache explain CODE` prints an entry; docs/codes.md lists them all. A remedy names a command or
a setting in single quotes. The table is sorted, and the file is long because it is one table.
"""

from __future__ import annotations

import re

from vlmcache.errors import UsageError
from vlmcache.report import Report
from vlmcache.units import and_list, did_you_mean, first_of

_PAGE = "https://github.com/vlmcache/vlmcache/blob/main/docs/codes.md"

CODES: dict[str, tuple[str, str]] = {
    "access-denied": (
        "The hub refuses the request: the repo is gated or private, or the token is not valid.",
        "Accept the model's terms on its page, then log in with 'hf auth login' or set 'HF_TOKEN'.",
    ),
    "backup-place": (
        "The place of a backup cannot be reached, read or written.",
        (
            "Check the address and its credentials, then run 'vlmcache backup' or 'vlmcache "
            "restore' again."
        ),
    ),
    "bad-answer": (
        "The answer did not come from a hub: a network's login page, or a broken mirror.",
        "Check 'HF_ENDPOINT' and 'HTTPS_PROXY', and log in to the network.",
    ),
    "bad-backup": (
        "A model cannot be backed up as it is, or a backup cannot be trusted.",
        "Run 'vlmcache verify --repair' where the models are, then 'vlmcache backup' again.",
    ),
    "base-absent": (
        "A base (a cache beneath this one) is missing: it was removed, or is not mounted.",
        "Mount it; if it is elsewhere now, run 'vlmcache attach' with that folder.",
    ),
    "base-has-more": (
        "A base has models that are not linked into this cache.",
        "'vlmcache attach' links them.",
    ),
    "base-unreadable": (
        "You may not read all of a base, so some of its models cannot be loaded.",
        "Ask its admin to let its users read it; 'vlmcache doctor' shows the command.",
    ),
    "base-writable": (
        "You can write to a base, which only its admin should change.",
        "Ask its admin to run 'chmod -R go-w FOLDER', or to mount it read-only for its users.",
    ),
    "busy": (
        "Another process is moving something to the same place.",
        "Wait until the other process has finished, then run 'vlmcache move' again.",
    ),
    "cache": (
        "The cache folder cannot be read or written.",
        "'vlmcache doctor' shows which path or permission is the cause.",
    ),
    "cache-not-readable": (
        "You may not read the cache folder.",
        (
            "Ask its owner to run 'vlmcache doctor --shared GROUP --fix', or name another cache "
            "with '--cache-dir'."
        ),
    ),
    "cache-not-there": (
        "There is no cache folder yet that a group could share.",
        "Make the folder, then run 'vlmcache doctor --shared GROUP --fix'.",
    ),
    "cache-not-writable": (
        "The cache folder does not exist and cannot be made.",
        "Name another folder with '--cache-dir' or 'HF_HUB_CACHE'.",
    ),
    "cache-path": (
        "The path of the cache cannot be used: it is not a folder, or a part of it is missing.",
        "Correct '--cache-dir', 'HF_HUB_CACHE' or 'HF_HOME', whichever names it.",
    ),
    "cache-read-only": (
        "The cache can be read but not written: status and loading work, pull and rm do not.",
        "To change something, name a cache of your own with '--cache-dir' or 'HF_HUB_CACHE'.",
    ),
    "changed": (
        "The cache changed between the plan and its execution; what changed was left alone.",
        "Run the command again with '--dry-run' to see a new plan.",
    ),
    "changed-copy": (
        "A kept quantized copy has changed since it was made.",
        "Make it again with 'vlmcache quantize MODEL'; the next load checks it in any case.",
    ),
    "closed-above": (
        "A folder above the cache cannot be entered by the group that shares the cache.",
        "Set 'HF_HUB_CACHE' to a folder that everyone can reach, or open that folder.",
    ),
    "config-exists": (
        "A config.yaml was to be written where something else is already.",
        "'vlmcache pull --add MODEL' adds to it; 'vlmcache init --config FILE' writes another one.",
    ),
    "config-not-written": (
        "A config.yaml cannot be written or added to.",
        "Name a file elsewhere with '--config', or add the lines that the hint shows by hand.",
    ),
    "configuration": (
        "A setting in config.yaml, in a .env file or in the environment is wrong or is ignored.",
        "Correct it at the place that the message names; 'vlmcache doctor' lists what applies.",
    ),
    "conflicting-settings": (
        "Two settings name different cache folders, and one of them is ignored.",
        "Unset the one that you do not mean: 'HF_HUB_CACHE', 'HF_HOME' or an older name for one.",
    ),
    "copied-files": (
        "A revision holds copies of files where links are usual, so revisions share no bytes.",
        "Nothing needs to be done; a 'vlmcache pull MODEL' on a filesystem with links saves space.",
    ),
    "crashed": (
        "The process that loaded the model ended without an answer.",
        (
            "Try a smaller precision or another device: 'vlmcache load-test MODEL --precision "
            "int8 --device cpu'."
        ),
    ),
    "damaged": (
        "Something in the cache is damaged or missing.",
        "'vlmcache verify --repair' downloads it again, and nothing else.",
    ),
    "damaged-base": (
        "A file in a base is not what its hash says: every cache that links to it is affected.",
        "Tell the base's admin; 'vlmcache verify MODEL --repair' fetches a copy of your own.",
    ),
    "damaged-blob": (
        "'vlmcache verify' found that a file is not what its hash says; it has not changed since.",
        "'vlmcache verify MODEL --repair' downloads it again, and nothing else.",
    ),
    "damaged-on-node": (
        "During 'vlmcache fleet pull', a node's own copy of a file was not what its hash says.",
        "It was fetched again; 'vlmcache fleet verify' checks the rest; the disk may be failing.",
    ),
    "damaged-repos": (
        "Some repos in the cache have errors.",
        "'vlmcache status -v' lists them, each with its own remedy.",
    ),
    "damaged-weights": (
        "The weight files are there but cannot be read as weights.",
        "'vlmcache verify MODEL --repair' downloads the damaged files again.",
    ),
    "dangling-link": (
        "A link in the cache leads to a file or folder that does not exist.",
        (
            "'vlmcache pull MODEL' downloads the missing content; mount the drive first if there "
            "is one."
        ),
    ),
    "drive-away": (
        "The model was moved to a drive, or is linked into a base, that is not mounted now.",
        (
            "Mount it; if it is elsewhere now, run 'vlmcache move --relink DIR' or 'vlmcache "
            "attach DIR'."
        ),
    ),
    "empty-blob": (
        "A file that should have content is empty.",
        "'vlmcache verify MODEL --repair' replaces it.",
    ),
    "empty-snapshot": (
        "A revision's folder contains no files.",
        "'vlmcache pull MODEL' fills it.",
    ),
    "failed": (
        "The command did not do what was asked, for the reason in its message.",
        "Run it again with '-vv' to see each step.",
    ),
    "failed-copy": (
        "A kept quantized copy could not be loaded, but its original could: the copy is set aside.",
        "Make it again with 'vlmcache quantize MODEL', or remove it with '--remove'.",
    ),
    "fleet-differs": (
        "A node is missing a model, or has another commit of it than other nodes.",
        "Run 'vlmcache pull' on the nodes that are named.",
    ),
    "gguf": (
        "The weights are GGUF files, which this command neither loads nor measures.",
        "Run them with llama.cpp, Ollama or LM Studio; 'vlmcache status' lists the variants.",
    ),
    "gpu-driver": (
        "The GPU driver is installed but does not answer.",
        "Run 'nvidia-smi' to see the driver's own message.",
    ),
    "home-not-writable": (
        "vlmcache cannot write to its own folder, so it cannot remember when models were used.",
        "Name a writable folder with 'VLMCACHE_HOME'.",
    ),
    "hostile-listing": (
        "The hub lists file names for this repo that must not be written to a disk.",
        "Do not use the repo; if it is yours, check 'HF_ENDPOINT' and rename the files.",
    ),
    "hub": (
        "The hub could not be used as asked.",
        "Check 'HF_ENDPOINT', and run the command again with '-vv' to see each request.",
    ),
    "hub-not-asked": (
        (
            "Whether the hub has a newer revision is not known, because it was not or could not "
            "be asked."
        ),
        "Run 'vlmcache status --outdated' when there is a network and 'HF_HUB_OFFLINE' is unset.",
    ),
    "hub-unreachable": (
        "The hub does not answer, or says that it cannot serve now.",
        "Check the network and 'HTTPS_PROXY', then run 'vlmcache pull' again: it resumes.",
    ),
    "in-use": (
        "A process is using what was to be removed.",
        "End that process and run the 'vlmcache' command again.",
    ),
    "internal": (
        "The operating system refused something unexpected, or vlmcache has a defect.",
        (
            "'vlmcache doctor' checks the system; with 'VLMCACHE_DEBUG=1' a report shows where it"
            " failed."
        ),
    ),
    "interrupted": (
        "Ctrl-C ended the command; everything was left in order.",
        "Run the same 'vlmcache' command again: it continues where it stopped.",
    ),
    "leftover": (
        "An interrupted run left something that nothing uses.",
        "'vlmcache clean' removes leftovers.",
    ),
    "link-loop": (
        "A link in a revision leads back to itself.",
        "'vlmcache pull MODEL' replaces the link.",
    ),
    "linked-repo": (
        "The repo's folder is a link to another place, and is used from there.",
        "Nothing needs to be done; 'vlmcache move' made the link, or you did.",
    ),
    "live-partial": (
        "A download into this repo is in progress.",
        "'vlmcache watch' shows how far it is.",
    ),
    "loading-not-installed": (
        "The packages that load models are not installed, so models cannot be measured.",
        "Install them: 'vlmcache doctor' shows the command.",
    ),
    "lost-link": (
        "A file's content is in the cache, but the link to it in the revision is missing.",
        "'vlmcache verify MODEL --repair' restores the link without a download.",
    ),
    "low-disk": (
        "The disk of the cache has less free space than the configured minimum.",
        "'vlmcache clean --free SIZE' makes room; 'vlmcache.min_free' sets the minimum.",
    ),
    "low-space": (
        "Less space is free than 'vlmcache watch --exit-on-low' requires.",
        "'vlmcache clean' frees what is not needed.",
    ),
    "malformed-ref": (
        "A file in refs does not contain a commit hash.",
        "'vlmcache pull MODEL' writes it again.",
    ),
    "metrics": (
        "The metrics cannot be written, or the address for them cannot be opened.",
        "Name another file with '--metrics' or another port with '--listen'.",
    ),
    "missing-blob": (
        "A blob is a link to content that does not exist, in the shared store or elsewhere.",
        "'vlmcache pull MODEL' fetches the content again.",
    ),
    "missing-manifest": (
        "A shared blob has no list of the repos that use it, so the hub's client never frees it.",
        "'vlmcache clean' frees it once no repo links to it.",
    ),
    "missing-package": (
        "A Python package that this command needs is not installed.",
        "Install what the message names; 'vlmcache doctor' shows what else is missing.",
    ),
    "missing-snapshots": (
        "The repo has no snapshots folder, so nothing in it can be loaded.",
        "'vlmcache pull MODEL' builds it from the blobs and downloads what is missing.",
    ),
    "name-taken": (
        "Something else has the name of what 'vlmcache undo' should restore.",
        "Rename or remove that, then run 'vlmcache undo' again; the trash still has it.",
    ),
    "needs-repo": (
        "Loading the model needs another repo, which is not in the cache: a base model, or code.",
        "Run 'vlmcache pull' for the model: it fetches the other repo too, after asking.",
    ),
    "no-access-times": (
        (
            "The mount does not record when files are read; only vlmcache's own journal knows the"
            " last use."
        ),
        "Mount it with 'relatime', or load models with 'vlmcache.load_model', which records uses.",
    ),
    "no-bytecode": (
        "The libraries' compiled bytecode is not kept, so each process compiles them at its start.",
        "Unset PYTHONDONTWRITEBYTECODE, or run 'python -m compileall' once on their folder.",
    ),
    "no-cluster": (
        "The Ray cluster cannot be joined.",
        "Run 'ray status' on its head node, and name that with 'vlmcache fleet status --address'.",
    ),
    "no-device": (
        "The requested device does not exist on this machine.",
        "Use '--device auto' or one that 'vlmcache doctor' lists.",
    ),
    "no-generation-config": (
        "The settings for generating text that belong to the model are missing.",
        "Run 'vlmcache pull' for the model with '--include generation_config.json'.",
    ),
    "no-loader": (
        "The weights are in a format that no current library loads: TensorFlow's or Flax's.",
        "Look for a repo with safetensors and 'vlmcache pull' it, or convert the weights.",
    ),
    "no-locks": (
        "The filesystem has no file locks, so two downloads of one file can run at once.",
        "Run 'vlmcache pull' on one machine at a time.",
    ),
    "no-members": (
        "The group that should share the cache has no members.",
        "Add each user with 'usermod -aG GROUP USER'.",
    ),
    "no-modes": (
        "The filesystem does not store file permissions, so none can be set.",
        "Mount it with the options 'uid=', 'gid=' and 'umask=' for those who should use the cache.",
    ),
    "no-scheduler": (
        "Nothing on this machine runs commands at set times for you.",
        "Install cron, or log in to a session of systemd, then run 'vlmcache schedule' again.",
    ),
    "no-space": (
        "The disk does not have enough free space for the command.",
        "'vlmcache pull --make-room' or 'vlmcache clean --free SIZE' makes room.",
    ),
    "no-such-file": (
        "The hub lists a file that it does not have.",
        "Name another revision with '--revision', or leave the file out with '--exclude'.",
    ),
    "no-such-model": (
        "The name is neither a key of config.yaml nor a repo in the cache.",
        "'vlmcache status --all' lists the names.",
    ),
    "no-such-repo": (
        "The hub does not have this repo, or does not show it to you.",
        "Check the spelling; for a private repo log in with 'hf auth login'.",
    ),
    "no-such-revision": (
        "The repo has no such branch, tag or commit.",
        "Name one that exists with '--revision', or leave it out to use 'main'.",
    ),
    "no-symlinks": (
        "The filesystem has no symbolic links, so each revision keeps its own copies.",
        "Set 'HF_HUB_CACHE' to a filesystem with links; on Windows turn on developer mode.",
    ),
    "node-lost": (
        "A node died, hangs or cannot be reached; what it had done is kept.",
        (
            "Run the command again once the node is back; 'vlmcache fleet status' shows whether it "
            "is."
        ),
    ),
    "non-utf8-name": (
        "The name of a file or folder is not valid UTF-8.",
        (
            "No program of the hub writes such names: 'vlmcache status -v' says where it is, "
            "and it is left alone."
        ),
    ),
    "not-a-member": (
        "You are not a member of the group that should share the cache.",
        "An administrator types 'sudo usermod -aG GROUP YOU'; then log in again.",
    ),
    "not-attached": (
        "Nothing of the base could be linked into this cache.",
        "The message says why; 'vlmcache doctor' shows what links and permissions need.",
    ),
    "not-cached": (
        "Not every model that was asked about is complete in the cache.",
        "'vlmcache pull MODEL' downloads what is missing.",
    ),
    "not-downloaded": (
        "The model to load is not in the cache, or not completely.",
        "Download it with 'vlmcache pull MODEL'.",
    ),
    "not-enough-memory": (
        "The model does not fit into the memory of the machine or the device.",
        "Load it at a smaller precision: 'vlmcache load-test MODEL --precision int8'.",
    ),
    "not-in-base": (
        "Links of this cache lead into a base that no longer has these files.",
        "'vlmcache pull MODEL' fetches them, or 'vlmcache attach' links what the base has now.",
    ),
    "not-moved": (
        "Nothing was moved, for the reasons listed.",
        "Fix what the message names, then run the same 'vlmcache move' again.",
    ),
    "not-removed": (
        "Nothing was removed, for the reasons listed.",
        "'vlmcache doctor' checks the permissions; '--dry-run' shows the plan again.",
    ),
    "not-repaired": (
        "Not everything that is damaged could be repaired.",
        "Fix what the message names, then run 'vlmcache verify --repair' again.",
    ),
    "not-shared": (
        "Some entries have permissions with which the group cannot share the cache.",
        "'vlmcache doctor --shared GROUP --fix' sets them.",
    ),
    "nothing-to-undo": (
        "The trash holds no removal that 'vlmcache undo' could reverse, or none of that id.",
        "'vlmcache trash' lists what it holds; 'vlmcache rm --trash' keeps what it removes.",
    ),
    "offline": (
        "The network is switched off by a setting, so the hub is not asked.",
        "Unset 'HF_HUB_OFFLINE' to download.",
    ),
    "orphan-blob": (
        "No revision of the repo uses this blob.",
        "'vlmcache clean' removes it when it is old enough.",
    ),
    "orphan-shared-blob": (
        "No repo links to this blob of the shared store.",
        "'vlmcache clean' removes it under the store's own lock.",
    ),
    "other-format": (
        "The files are for another program or library than transformers.",
        "Load them with the program that the hint names, or 'vlmcache pull' another repo.",
    ),
    "other-owner": (
        "The cache belongs to another user.",
        "If you share it, 'vlmcache doctor --shared GROUP' checks its permissions.",
    ),
    "other-spelling": (
        "The cache holds the same repo under another spelling, as another program named it.",
        "'vlmcache status --all' shows the spelling; name the model as it is cached.",
    ),
    "outside-link": (
        "A link leads out of the repo or out of the cache, and is not followed.",
        "Remove the link if you did not make it, then run 'vlmcache pull MODEL'.",
    ),
    "oversized-blob": (
        "A file is longer than the hub's listing says.",
        "'vlmcache verify MODEL --repair' replaces it by the right content.",
    ),
    "partly": (
        "Some of what was asked for was done, and some was not.",
        "Fix what the message names and run the same 'vlmcache' command again: it does the rest.",
    ),
    "permissions": (
        "Some entries have permissions that a cache of one user should not have.",
        "'vlmcache doctor --fix' corrects them.",
    ),
    "quantization-not-installed": (
        "bitsandbytes is not installed, so models cannot be loaded at int8 or int4.",
        "Install it: 'vlmcache doctor' shows the command.",
    ),
    "ref-to-missing-commit": (
        "A branch or tag names a commit that has no snapshot in the cache.",
        "'vlmcache pull MODEL' downloads that commit.",
    ),
    "refused-name": (
        "A file has a name that cannot be written here, so it is left out.",
        "Ask those who publish the repo to rename it; '--exclude' leaves it out silently.",
    ),
    "remote-code": (
        "The repo contains Python code that loading would run; nothing of it was run.",
        "Read the code, then set 'revision' of the model in config.yaml to that commit.",
    ),
    "renamed": (
        "The hub has renamed the repo; the cache keeps the name that was asked for.",
        "Write the new name into config.yaml, then run 'vlmcache pull'.",
    ),
    "restored-partly": (
        "A restored revision is incomplete: some of its files were removed for good meanwhile.",
        "'vlmcache pull' fetches what is missing.",
    ),
    "same-commit": (
        "Several repos hold the same commit.",
        "Nothing needs to be done; 'vlmcache rm' removes by repo and never by a bare hash.",
    ),
    "schedule": (
        "A schedule cannot be written, read or removed, or its command does not run.",
        "'vlmcache schedule --dry-run' shows what would be written; then try again.",
    ),
    "schedule-as-root": (
        "A schedule made with sudo runs as root.",
        "Run 'vlmcache schedule' without sudo to let it run as you.",
    ),
    "schedule-inactive": (
        "The timer of a schedule is not active, so nothing runs.",
        "Run the 'systemctl' command that the finding names, or make the schedule again.",
    ),
    "schedule-no-daemon": (
        "The crontab holds a schedule, but the cron daemon is not running.",
        "Start it, for example with 'sudo service cron start'.",
    ),
    "schedule-no-linger": (
        "The user's timers run only while that user is logged in.",
        "Run 'loginctl enable-linger'.",
    ),
    "schedule-overdue": (
        "A schedule has not run for more than twice its interval.",
        "'vlmcache schedule --show' names its log; 'vlmcache doctor' says what else is wrong.",
    ),
    "schedule-program": (
        "The program that a schedule runs no longer exists, or does not start.",
        "Make the schedule again with the 'vlmcache schedule' command that the finding names.",
    ),
    "schedule-secret": (
        "A variable that holds a secret is not written into a timer.",
        "Nothing needs to be done; a token of 'hf auth login' is found by scheduled commands too.",
    ),
    "second-cache": (
        "Another folder also holds cached models, and is not the one in use.",
        "'vlmcache status --cache-dir FOLDER' lists it, 'vlmcache move' merges it.",
    ),
    "serve": (
        "The address to serve at cannot be listened on, or the server could not start.",
        "Name another address or port with '--listen'.",
    ),
    "source-dropped": (
        "A source of a pull sent wrong bytes or stopped responding, and is not used for the rest.",
        (
            "Run 'vlmcache verify' there if it is a cache, or 'vlmcache backup --verify' if it is "
            "a store; what was fetched is good."
        ),
    ),
    "source-unusable": (
        "A source of a pull does not exist, is of no known kind, or cannot be reached.",
        "Correct '--from' or 'sources' in your config.yaml, or plug in the drive.",
    ),
    "stale-partial": (
        "A download was left unfinished.",
        "'vlmcache pull MODEL' continues it, 'vlmcache clean --partials' removes it.",
    ),
    "still-needed": (
        "A model that stays in the cache needs what is removed: it is its base model or its code.",
        "Keep it, or remove that model too; 'vlmcache pull' for that model fetches it again.",
    ),
    "stray-file": (
        "A file in the cache belongs to nothing that vlmcache knows, and is left alone.",
        "Move the file elsewhere if you need it; 'vlmcache rm PATH --dry-run' shows its size.",
    ),
    "stray-folder": (
        "A folder in the cache belongs to nothing that vlmcache knows, and is left alone.",
        "Move the folder elsewhere if you need it; 'vlmcache status -v' shows where it is.",
    ),
    "terminated": (
        "A signal ended the command (SIGTERM); everything was left in order.",
        (
            "If that was not you, check time limits and the memory of the job, then run "
            "'vlmcache' again."
        ),
    ),
    "torch-broken": (
        "torch is installed but cannot be imported.",
        "Install it again: 'vlmcache doctor' shows the command.",
    ),
    "torch-without-gpu": (
        "The machine has a GPU that the installed build of torch cannot use.",
        (
            "Install the build for this device with 'pip install torch --index-url', see "
            "https://pytorch.org/get-started."
        ),
    ),
    "truncated-blob": (
        "A file is shorter than it should be.",
        "'vlmcache verify MODEL --repair' fetches what is missing.",
    ),
    "umask": (
        "With your umask the group could not change the files that you add to the shared cache.",
        "Put 'umask 002' into the profile of each user who shares it.",
    ),
    "unconfirmed": (
        "The command needs a confirmation and there is no terminal to ask on.",
        "Look at the plan with '--dry-run', then add '--yes'.",
    ),
    "unfinished-move": (
        "A move to this folder is in progress or was interrupted.",
        "Run the same 'vlmcache move' again to finish it, or add '--undo' to roll it back.",
    ),
    "unknown-architecture": (
        "The installed version of transformers does not know the model's architecture.",
        "Update it; 'vlmcache doctor' shows its version.",
    ),
    "unloadable": (
        "The model cannot be loaded with these settings.",
        (
            "Try other values of '--precision' and '--device', or the model's 'options' in "
            "config.yaml."
        ),
    ),
    "unreadable-file": (
        "You may not read a file in the cache.",
        (
            "'vlmcache doctor' shows who owns it; if 'sudo' made it, 'sudo vlmcache doctor --fix "
            "--cache-dir DIR' gives it back to the owner of the cache."
        ),
    ),
    "unreadable-folder": (
        "A folder in the cache cannot be read, so what it holds is not counted.",
        (
            "'vlmcache doctor --fix' corrects the permissions if the folder is yours; in a cache "
            "that a group shares, 'sudo vlmcache doctor --shared GROUP --fix --cache-dir DIR' does."
        ),
    ),
    "unreadable-header": (
        "The header of a weight file cannot be read.",
        "'vlmcache verify MODEL' says whether the file is damaged or is so on the hub.",
    ),
    "unreadable-index": (
        "The index that lists a model's weight files cannot be read.",
        "'vlmcache verify MODEL --repair' fetches the index again.",
    ),
    "unreadable-ref": (
        "A file that names the commit of a branch or tag cannot be read.",
        "'vlmcache pull MODEL' writes the ref again.",
    ),
    "unreadable-tree": (
        "The kept listing of a revision cannot be read.",
        "'vlmcache pull MODEL' fetches the listing again.",
    ),
    "unsupported-precision": (
        "The device or the model cannot work at the requested precision.",
        "Choose another with '--precision': bf16 works on most devices, fp32 on all.",
    ),
    "untrusted-code": (
        "Loading the model would run Python code of its repo, and that was not allowed.",
        "Read the code, then allow it with '--trust-remote-code' or 'trust_remote_code: true'.",
    ),
    "unverifiable-file": (
        "The mirror gives no hash for a file, so only the length of what arrives can be checked.",
        "Name a mirror that passes on the hub's hashes in 'HF_ENDPOINT', if the content matters.",
    ),
    "usage": (
        "The command line asks for something that is not possible.",
        "'vlmcache help COMMAND' shows the options and examples.",
    ),
    "variant-only": (
        "The weights are a variant, which loaders find only if they are asked for it.",
        "Pass 'variant' to 'from_pretrained', as the finding shows it.",
    ),
    "versions-differ": (
        "Nodes have other versions of vlmcache, Ray or Python than this machine.",
        "Install the same versions on all nodes; 'vlmcache doctor' shows those of one.",
    ),
    "vouched-by-source": (
        "Neither the hub nor this cache says which files the revision has: a source did.",
        "Run 'vlmcache pull' once the hub answers: it compares the files with the hub's hashes.",
    ),
    "world-writable": (
        "Every user of this machine can change the cache, and what it loads.",
        "Remove that permission with 'vlmcache doctor --fix'.",
    ),
    "wrong-bytes": (
        "The hub repeatedly sent bytes that differ from its own listing.",
        "Try again later, or without the mirror that 'HF_ENDPOINT' names.",
    ),
    "wrong-link": (
        "A file of a revision links to the content of another file.",
        "'vlmcache verify MODEL --repair' corrects the link.",
    ),
    "wrong-lock": (
        "Something else is where a lock of the cache belongs, so downloads wait for it or fail.",
        "Move it away, to the name that 'vlmcache doctor' shows; the next download makes the lock.",
    ),
    "wrong-owner": (
        "Something in the cache belongs to another user than the cache does, mostly to root.",
        "'sudo vlmcache doctor --fix --cache-dir DIR' gives it to the owner of the cache.",
    ),
}
"""Each code -> what it means, and what to do."""


class Explanation(Report, frozen=True):
    """What `vlmcache explain` says about a code."""

    code: str
    meaning: str
    remedy: str

    @property
    def ids(self) -> list[str]:
        """The code."""
        return [self.code]


def explain(code: str) -> Explanation:
    """Return what a code means and what to do about it.

    Raises:
        UsageError: there is no such code.
    """
    if code in CODES:
        return Explanation(code, *CODES[code])
    hint = did_you_mean(code, CODES, 1) or _about(code) or f"{_PAGE} lists them"
    raise UsageError(f"no such code: '{code}'", hint)


def _about(words: str) -> str | None:
    """Return a hint that names the codes whose meaning uses these words; `None` if none does."""
    wanted = set(re.findall(r"\w{3,}", words.casefold()))
    about = [
        code
        for code, (meaning, _) in CODES.items()
        if wanted and wanted <= set(re.findall(r"\w+", meaning.casefold()))
    ]
    return f"about {and_list(sorted(wanted))}: {first_of(about)}" if about else None
