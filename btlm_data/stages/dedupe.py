"""Find duplicates and near-duplicates over all sources and splits, and decide which documents stay.

reads   every block's .sketch (exact hashes, band keys [, signatures]) and .docs; an index of earlier runs,
        where requested
writes  dedupe/cluster/fates.cols, clusters.cols, clusters.parquet (dedupe/clusters.py); the index
unit    group of blocks (split) . range of keys (sort) . whole (exact, cluster)
balance one survivor per component of train documents; none where the component holds a validation or test
        document
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from btlm_data.blocks import Block
from btlm_data.dedupe import decided, gates
from btlm_data.dedupe.clusters import texts_that_stay
from btlm_data.dedupe.index import Index
from btlm_data.dedupe.removals import Evidence
from btlm_data.dedupe.removals import run as run_removals
from btlm_data.dedupe.settings import ClusterSettings
from btlm_data.dedupe.sizes import Sizes
from btlm_data.dedupe.steps import COMPONENTS, VERSION, Steps
from btlm_data.dedupe.text_steps import KeptTextsPlanner, MembersPlanner, TextSteps, list_members
from btlm_data.engine.runner import Runner
from btlm_data.errors import ConfigError
from btlm_data.estimate import Estimate, Workload
from btlm_data.fingerprint import digest
from btlm_data.formats.columns import Columns
from btlm_data.recipe.models import DedupeSettings, Run
from btlm_data.task import Artifact, Counts
from btlm_data.task_files import read_list

MAX_DOCUMENTS = 2**32 - 1


@dataclass(frozen=True)
class Deduplicated:
    """What the stage hands on. copies: clusters.cols. counts: its cells of the ledger. index_lineage: of the
    index it matched against.
    """

    fates: Artifact
    clusters: Artifact
    removals: Artifact
    copies: Artifact
    summary: Mapping[str, Any]
    counts: Counts
    index_lineage: list[list[str]]


def estimate(workload: Workload) -> list[Estimate]:
    """What finding duplicates takes, besides what an index of earlier runs adds."""
    dedupe = workload.settings.dedupe
    if dedupe.method == "none":
        return []
    settings = ClusterSettings(dedupe, workload.run.memory_per_worker)
    return Sizes(workload.volume.documents, settings).estimate(
        workload.rates, workload.volume.parts, workload.blocks
    )


def run(
    runner: Runner,
    blocks: Sequence[Block],
    table: Artifact,
    dedupe: DedupeSettings,
    how: Run,
    plan_members: MembersPlanner,
    plan_kept_texts: KeptTextsPlanner,
) -> Deduplicated | None:
    """Deduplicate all blocks; None if the recipe asks for none. table: of the blocks. plan_members,
    plan_kept_texts: members.py.

    Raises SafetyStop if a source would lose more than `max_removed` of its bytes, ConfigError for an index of
    another kind.
    """
    if dedupe.method == "none":
        return None
    total = blocks[-1].last_ordinal if blocks else 0
    if total > MAX_DOCUMENTS:
        raise ConfigError(
            f"The corpus has {total:,} documents; deduplication numbers them with 32 bits, up to {MAX_DOCUMENTS:,}. "
            "Prepare it in parts, each with --dedupe-index, so that later parts are deduplicated against earlier ones."
        )
    settings = ClusterSettings(dedupe, how.memory_per_worker)
    index = None
    if dedupe.index is not None:
        with runner.removing_damaged():
            index = Index(
                dedupe.index, _content(runner, blocks, settings), settings.index_kind, settings.index_needs
            )
        settings = replace(settings, index=index.reader)
    lineage = digest(
        VERSION,
        [
            [b.split, b.num_documents, b.docs.checksum, b.sketch.checksum if b.sketch else None]
            for b in blocks
        ],
        dedupe.model_dump(
            mode="json", exclude={"max_removed", "max_component", "expected_removed", "preset", "index"}
        ),
        index.reader.lineage if index is not None else None,
    )
    steps = Steps(blocks, table, settings, lineage, keeps_keys=index is not None and not index.is_added)
    work = runner.stores.work
    work.delete([decided.NAME])
    keys: list[Artifact] = []
    pairs: Artifact | None = None
    if settings.by_text:
        compared = TextSteps(steps, plan_members).run(runner)
        result, components, members = compared.cluster, compared.components, compared.members
        num_groups, keys, pairs = len(compared.compared), list(compared.keys), compared.pairs
    else:
        result, keys = steps.run(runner)
        [components] = [file for file in result.outputs if file.name == COMPONENTS]
        num_groups = result.counts.extra["groups"]
        members = list_members(runner, plan_members(components, num_groups, False))
    files = {artifact.name.rpartition("/")[2]: artifact for artifact in result.outputs}
    decided.write(
        work,
        decided.Decided(
            dedupe,
            num_groups,
            components,
            members,
            pairs,
            decided.amounts(result.counts),
            index.reader.runs if index is not None else (),
        ),
    )
    runner.named.add(decided.NAME)
    removals = run_removals(
        runner,
        Evidence(
            lineage,
            num_groups,
            members,
            components,
            files["removed.cols"],
            files["fates.cols"],
            compared.compared if settings.by_text else (),
        ),
    )
    evidence = gates.Evidence(work, files["clusters.parquet"], removals, read_list(work, members))
    gates.check(
        result.counts.extra["removed"],
        result.counts.extra["summary"],
        dedupe,
        how.accept_removal or how.accept_removal_of,
        evidence,
    )
    if index is not None and not index.is_added:
        keeps_signatures = "bands" in settings.key_kinds and not settings.by_text
        sketches = (
            [(b.first_ordinal, b.sketch) for b in blocks if b.sketch is not None] if keeps_signatures else []
        )
        with runner.removing_damaged():
            texts, stays = [], None
            if settings.by_text:
                kept = plan_kept_texts(components, files["fates.cols"])
                texts = [artifact for result in runner.run(kept) for artifact in result.outputs]
                stays = texts_that_stay(Columns(work, components), Columns(work, files["fates.cols"]))
            index.add(keys, sketches, total, work, texts, stays)
            runner.discard_files("dedupe/kept-texts")
    return Deduplicated(
        files["fates.cols"],
        files["clusters.parquet"],
        removals,
        files["clusters.cols"],
        result.counts.extra["summary"],
        result.counts,
        index.reader.lineage if index is not None else [],
    )


def _content(runner: Runner, blocks: Sequence[Block], settings: ClusterSettings) -> str:
    """A run's name in an index: its documents' texts and the kind of its sketches.

    Other tokenizers or lengths make the same run.
    """
    texts = [
        [block.split, Columns(runner.stores.work, block.sketch).meta["content"]]
        for block in blocks
        if block.sketch is not None
    ]
    return digest(list(settings.index_kind), settings.index_needs, settings.dedupe.holdout, texts)[:32]
