"""``satunet knowledge build | info | show | check`` and ``satunet text bank``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg, subcommand

from satunet.cli.options import Encoder, Verbose

if TYPE_CHECKING:
    from collections.abc import Iterable

    from satunet.knowledge.tree import KnowledgeTree, Term
    from satunet.labels import LabelSpace

TreeFile = Annotated[
    Path | None,
    arg(
        aliases=["-t"],
        metavar="FILE",
        help="Knowledge tree; if not given, the last one built or, if there is none, SAT-DS's classes.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a knowledge tree from a label space, ontologies and files; every link is listed for review."""

    output: Annotated[
        Path | None,
        arg(aliases=["-o"], metavar="FILE", help="File to write; if not given, the one that other commands read."),
    ] = None
    ontologies: Annotated[
        tuple[Literal["UBERON", "MONDO", "none"], ...],
        arg(help="Ontologies of the package cellxgene-ontology-guide (extra: knowledge); 'none' takes none."),
    ] = ("UBERON", "MONDO")
    obo: Annotated[tuple[Path, ...], arg(metavar="FILE", help="OBO files.")] = ()
    umls: Annotated[Path | None, arg(metavar="FOLDER", help="META folder of a UMLS release (RRF files).")] = None
    tables: Annotated[tuple[Path, ...], arg(metavar="FILE", help="Terms as CSV, TSV, JSON or JSON lines.")] = ()
    dataset: Annotated[
        str | None, arg(aliases=["-d"], metavar="ID", help="Unified dataset whose classes to take instead of SAT-DS's.")
    ] = None
    licence: Annotated[str, arg(help="Licence of OBO files and tables, kept with every term.")] = "as its owner says"
    lenient: Annotated[bool, arg(help="Leave out contradictory entries, with a warning, instead of stopping.")] = False
    verbose: Verbose = False

    def run(self) -> int:
        """Build, write tree and links, and show what is in it."""
        from satunet.cli.printing import print_rows
        from satunet.knowledge.file import default_tree_path, save_tree
        from satunet.knowledge.link import write_review
        from satunet.knowledge.make import build_tree

        output = self.output or default_tree_path()
        space, store = self._space()
        built = build_tree(
            ontologies=tuple(o for o in self.ontologies if o != "none"),
            obo=self.obo,
            umls=self.umls,
            tables=self.tables,
            space=space,
            store=store,
            licence=self.licence,
            lenient=self.lenient,
        )
        save_tree(built.tree, output)
        review = output.with_name(output.name.split(".")[0] + "_links.tsv")
        write_review(list(built.links), built.tree, review)
        _show_info(built.tree, str(output))
        rules: dict[str, int] = {}
        for link in built.links:
            rules[link.rule or "none found"] = rules.get(link.rule or "none found", 0) + 1
        rows: list[dict[str, object]] = [
            {"rule": r, "classes": n} for r, n in sorted(rules.items(), key=lambda x: -x[1])
        ]
        print_rows(rows, f"Links of {len(built.links)} classes, {built.linked:.1%} linked: {review}")
        for note in built.notes:
            print(note)
        return 0

    def _space(self) -> tuple[LabelSpace | None, Path | None]:
        if self.dataset is None:
            return None, None
        from satunet.datasets.unified import UnifiedFolder
        from satunet.labels import LabelSpace

        unified = UnifiedFolder.find(self.dataset)
        space = LabelSpace.load(unified.label_space)
        return space, unified.store if unified.store.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what a knowledge tree contains: sources, licences, terms and relations."""

    tree: TreeFile = None
    verbose: Verbose = False

    def run(self) -> int:
        """Print it."""
        from satunet.knowledge.file import default_tree_path
        from satunet.knowledge.make import load_or_build

        tree = load_or_build(self.tree)
        where = self.tree or (default_tree_path() if default_tree_path().is_file() else "classes of SAT-DS")
        _show_info(tree, str(where))
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show a term: names, definition, relations, parts, and the datasets that have it."""

    term: Positional[Annotated[str, arg(metavar="TEXT", help="Name or id.")]]
    tree: TreeFile = None
    verbose: Verbose = False

    def run(self) -> int:
        """Print the term; if there is none, print the nearest ones and return 1."""
        from satunet.knowledge.make import load_or_build

        tree = load_or_build(self.tree)
        found = tree.find(self.term)
        if not found:
            near = ", ".join(f"{t.name} ({s:.2f})" for t, s in tree.nearest(self.term))
            print(f"there is no term {self.term!r}; nearest by spelling: {near or 'none'}")
            return 1
        for term in found[:3]:
            _show_term(tree, term)
        if len(found) > 3:
            print(f"{len(found) - 3} more terms have this name: {', '.join(t.id for t in found[3:])}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check a knowledge tree: contradictions are reported as errors with their line, doubtful entries are listed."""

    tree: TreeFile = None
    verbose: Verbose = False

    def run(self) -> int:
        """Print the findings."""
        from satunet.cli.printing import print_rows
        from satunet.knowledge.check import check_tree
        from satunet.knowledge.make import load_or_build

        tree = load_or_build(self.tree)
        rows: list[dict[str, object]] = [
            {"finding": f.what, "count": f.count, "examples": "; ".join(f.examples)} for f in check_tree(tree)
        ]
        print_rows(rows, f"{len(tree.terms)} terms, {len(tree.relations)} relations: no cycle, no dangling relation")
        return 0


KnowledgeAction: TypeAlias = (
    Annotated[Build, subcommand("build")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Check, subcommand("check")]
)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Build and inspect the knowledge tree."""

    action: Annotated[KnowledgeAction, arg(name="")]

    @property
    def verbose(self) -> bool:
        """Whether the action is verbose."""
        return self.action.verbose

    def run(self) -> int:
        """Run the action."""
        return self.action.run()


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Write the embeddings of prompts into one file, a bank, so that prediction needs no encoder for them."""

    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE", help="Bank to write (.safetensors).")]
    prompts: Annotated[tuple[str, ...], arg(aliases=["-p"], metavar="TEXT", help="Texts.")] = ()
    prompt_file: Annotated[Path | None, arg(metavar="FILE", help="Text file with one prompt per line.")] = None
    classes: Annotated[bool, arg(help="Also encode every class of SAT-DS.")] = False
    encoder: Encoder = "minilm"
    verbose: Verbose = False

    def run(self) -> int:
        """Encode and write."""
        from satunet.datasets.catalogue import load_catalogue
        from satunet.errors import PromptError
        from satunet.jobs.progress import progress_bar
        from satunet.text import TextBank, load_text_encoder

        texts = [*self.prompts]
        if self.prompt_file is not None:
            try:
                lines = self.prompt_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise PromptError(f"{self.prompt_file}: cannot be read as a list of prompts ({error})") from error
            texts += [line.strip() for line in lines if line.strip()]
        texts += load_catalogue().class_names if self.classes else ()
        texts = list(dict.fromkeys(t for t in texts if t.strip()))
        if not texts:
            raise PromptError('say what to encode with one of: -p "liver" …, --prompt_file FILE, --classes')
        encoder = load_text_encoder(self.encoder)
        with progress_bar("Encoding", len(texts)) as advance:
            done = 0

            def report(now: int, total: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            bank = TextBank.build(encoder, texts, on_progress=report)
        bank.save(self.output)
        print(f"{self.output}: {len(texts)} texts, {bank.dim} values each, by {encoder.name} ({encoder.fingerprint})")
        return 0


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """Show a text encoder: width, pooling, and the classes that it finds closest to a few prompts."""

    encoder: Encoder = "minilm"
    prompts: Annotated[
        tuple[str, ...], arg(aliases=["-p"], metavar="TEXT", help="Texts whose nearest classes are shown.")
    ] = ()
    verbose: Verbose = False

    def run(self) -> int:
        """Print it."""
        from satunet.cli.printing import print_rows
        from satunet.datasets.catalogue import load_catalogue
        from satunet.text import load_text_encoder

        encoder = load_text_encoder(self.encoder)
        settings = getattr(encoder, "settings", "its own")
        print(f"{encoder.name}: {encoder.dim} values, {settings}, hash {encoder.fingerprint}")
        if self.prompts:
            names = load_catalogue().class_names
            similarity = encoder.encode(list(self.prompts)) @ encoder.encode(names).T
            rows: list[dict[str, object]] = [
                {"prompt": p, "nearest classes": [f"{names[i]} ({row[i]:.2f})" for i in (-row).argsort()[:5]]}
                for p, row in zip(self.prompts, similarity, strict=True)
            ]
            print_rows(rows, f"Nearest of the {len(names)} classes of SAT-DS")
        return 0


TextAction: TypeAlias = Annotated[Bank, subcommand("bank")] | Annotated[Encoders, subcommand("encoders")]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text encoders and banks of embeddings."""

    action: Annotated[TextAction, arg(name="")]

    @property
    def verbose(self) -> bool:
        """Whether the action is verbose."""
        return self.action.verbose

    def run(self) -> int:
        """Run the action."""
        return self.action.run()


def _show_info(tree: KnowledgeTree, title: str) -> None:
    from satunet.cli.printing import print_rows
    from satunet.knowledge.build import summarise

    counts = tree.by_source()
    rows: list[dict[str, object]] = [
        {"source": s.name, "terms": counts[s.name], "version": s.version, "licence": s.licence, "url": s.url}
        for s in tree.sources
    ]
    print_rows(rows, f"{title}: {len(tree.terms)} terms")
    kinds: list[dict[str, object]] = [{"relation": kind, "count": n} for kind, n in summarise(tree)]
    print_rows(kinds, f"{len(tree.relations)} relations")


def _show_term(tree: KnowledgeTree, term: Term) -> None:
    from satunet.cli.printing import print_rows

    def names(found: Iterable[str], most: int = 12) -> str:
        ids = list(found)
        more = f" … and {len(ids) - most} more" if len(ids) > most else ""
        return ", ".join(f"{tree.terms[i].name} [{i}]" for i in ids[:most]) + more

    licence = next(s.licence for s in tree.sources if s.name == term.source)
    rows: list[dict[str, object]] = [
        {"what": "names", "value": ", ".join(tree.synonyms(term.id))},
        {"what": "definition", "value": term.definition or "none"},
        {"what": "source", "value": f"{term.source} ({licence})"},
    ]
    rows += [{"what": "other ids", "value": ", ".join(term.ids)}] if term.ids else []
    kinds: dict[str, list[str]] = {}
    for relation in tree.relations_of(term.id):
        kinds.setdefault(relation.kind, []).append(relation.tail)
    rows += [{"what": kind, "value": names(ids)} for kind, ids in kinds.items()]
    rows.append({"what": "ancestors", "value": names(tree.ancestors(term.id)) or "none"})
    rows.append({"what": "parts", "value": names(tree.parts(term.id)) or "none"})
    rows += [{"what": "datasets", "value": ", ".join(term.datasets)}] if term.datasets else []
    rows += [{"what": "scans", "value": f"{len(term.scans)}: " + ", ".join(term.scans[:8])}] if term.scans else []
    print_rows(rows, f"{term.name} [{term.id}]")
