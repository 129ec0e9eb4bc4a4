"""What is wrong besides content: headers, links, refs, and files that are missing."""

from __future__ import annotations

import os

import msgspec

from vlmcache import units
from vlmcache.cache import layout
from vlmcache.cache.completeness import judge_repo, judge_revision
from vlmcache.cache.moved import away_remedy, away_words
from vlmcache.cache.state import UNREADABLE, Finding, Repo
from vlmcache.cache.weights import read_header
from vlmcache.commands.verify.scope import Results, Scope
from vlmcache.commands.verify.values import Damage, Missing, Unverifiable

_WEIGHTS = ".safetensors"


def check_headers(scope: Scope, results: Results) -> None:
    """Check the headers of safetensors files.

    A file that is what the Hub has and has an unreadable header is not damaged in this cache.
    """
    for revision in scope.revisions:
        for file in revision.files:
            if not file.name.endswith(_WEIGHTS) or file.kind not in ("link", "copy"):
                continue
            path = os.path.join(revision.path, *file.name.split("/"))
            blob = os.path.join(scope.repo.path, layout.BLOBS, file.blob) if file.blob else path
            if blob in results.damaged or (blob in results.good and blob not in results.fresh):
                continue
            try:
                read_header(path)
            except (OSError, ValueError) as error:
                if blob in results.good:
                    finding = Finding(
                        "unreadable-header",
                        "warning",
                        scope.repo.id,
                        path,
                        f"it is what the Hub has, but {error}",
                    )
                    results.findings.append(finding)
                else:
                    results.damaged[blob] = Damage(
                        scope.repo.id,
                        blob,
                        file.blob,
                        None,
                        None,
                        "unreadable-header",
                        str(error),
                        (file.name,),
                    )


def add_findings(scope: Scope, results: Results) -> None:
    """Count what the scan found broken as damage: links, sizes, refs."""
    repo = scope.repo
    listings = {repo.tree_path(revision.commit) for revision in scope.revisions}
    for finding in repo.findings:
        if finding.code == "unreadable-tree" and finding.path in listings:
            results.damaged[finding.path] = _broken(repo, finding)
        elif finding.code == "unreadable-file" and finding.path in listings:
            results.unverifiable.append(Unverifiable(repo.id, finding.path, None, finding.detail))
    if judge_repo(repo) != "damaged":
        return  # What looks broken is a download that has just begun.
    inside = [revision.path + os.sep for revision in scope.revisions]
    refs = os.path.join(repo.path, layout.REFS)
    inside += [
        os.path.join(refs, *ref.split("/")) + os.sep
        for ref, commit in repo.refs.items()
        if scope.commits is not None and commit in scope.commits and repo.revision(commit) is None
    ]
    for finding in repo.findings:
        if finding.severity != "error":
            continue
        if finding.code == UNREADABLE:
            results.unverifiable.append(Unverifiable(repo.id, finding.path, None, finding.detail))
            continue
        known = results.damaged.get(finding.path)
        if known is not None:
            results.damaged[finding.path] = msgspec.structs.replace(
                known, problem=finding.code, detail=finding.detail
            )
            continue
        in_blobs = finding.path.startswith(os.path.join(repo.path, layout.BLOBS) + os.sep)
        if scope.commits is not None and (
            in_blobs or not f"{finding.path}{os.sep}".startswith(tuple(inside))
        ):
            continue
        results.damaged[finding.path] = _broken(repo, finding)


def add_missing(scope: Scope, results: Results) -> None:
    """Note what loading needs and what does not exist, or is on a drive that is away."""
    for revision in scope.revisions:
        names = scope.repo.lost_names(revision.commit) if revision.files else set()
        if scope.commits is not None or revision.refs:
            # In a revision that no ref names, nobody needs what a pattern left out.
            names.update(judge_revision(scope.repo, revision).missing)
        results.missing += (
            Missing(scope.repo.id, revision.commit, name, scope.repo.type) for name in sorted(names)
        )
    away = scope.repo.away
    if away is not None:
        reason = f"{away_words(away, scope.repo.id)}; {away_remedy(away)}"
        results.unverifiable.append(Unverifiable(scope.repo.id, scope.repo.path, None, reason))
    elif not scope.repo.revisions and judge_repo(scope.repo) != "damaged":
        results.missing.append(Missing(scope.repo.id, "main", "*", scope.repo.type))


def add_not_repairable(repo: Repo, results: Results) -> None:
    """Say what fetches a dataset or space anew, if anything of it is damaged or missing."""
    if repo.type == "model":
        return
    inside = repo.path + os.sep
    bad = any(f"{path}{os.sep}".startswith(inside) for path in results.damaged)
    bad = bad or any((gap.repo, gap.type) == (repo.id, repo.type) for gap in results.missing)
    if bad:
        results.findings.append(
            Finding(
                "not-repairable",
                "warning",
                repo.id,
                repo.path,
                f"only models can be repaired: this is a {repo.type}",
                units.of_other_type(repo.type, repo.id),
            )
        )


def _broken(repo: Repo, finding: Finding) -> Damage:
    """Return the damage that a finding reports, with the hash that belongs there."""
    folder, name = os.path.split(finding.path)
    if folder == os.path.join(repo.path, layout.BLOBS):
        expected = name if layout.is_etag(name) else None
        return Damage(repo.id, finding.path, name, expected, None, finding.code, finding.detail)
    for revision in repo.revisions:
        if finding.path.startswith(revision.path + os.sep):
            file = os.path.relpath(finding.path, revision.path).replace(os.sep, "/")
            listed = (revision.tree or {}).get(file)
            etag = listed.etag if listed is not None else None
            return Damage(
                repo.id, finding.path, etag, etag, None, finding.code, finding.detail, (file,)
            )
    return Damage(repo.id, finding.path, None, None, None, finding.code, finding.detail)
