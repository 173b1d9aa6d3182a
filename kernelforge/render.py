"""Renders a variant's template to GLSL, and remembers which template line made which GLSL line.

Compiling is the business of `kernelforge.compile`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib.resources.abc import Traversable
from types import TracebackType
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from kernelforge.errors import RenderError
from kernelforge.family import KernelFamily
from kernelforge.resources import templates_dir
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import DType

# A marker is two control characters around "file:line"; they cannot occur in GLSL.
_MARKER = re.compile("\x01([^\x01\x02]*):([0-9]+)\x02")
# With buffer addresses a binding becomes a macro, which would replace these after a dot, too.
_NOT_A_BINDING = frozenset("xyzwrgbastpq") | {"data"}


@dataclass(frozen=True)
class Rendered:
    """GLSL of one variant.

    Attributes:
        variant: its name.
        glsl: what is compiled.
        sha256: of `glsl`, in hex.
        template_sha256: of the template and every file that it uses, in hex; a bundle whose value
            differs from that of today's template is stale.
        marked: renders the same with markers, for `line_map`.
    """

    variant: str
    glsl: str
    sha256: str
    template_sha256: str
    marked: Callable[[], str] = field(repr=False, compare=False)

    @cached_property
    def line_map(self) -> tuple[tuple[str, int], ...]:
        """For each line of `glsl`, the template file and the line in it.

        Made when it is first asked for, which takes as long as rendering: only errors need it.
        """
        try:
            return _line_map(self.marked(), self.glsl)
        except RenderError:  # a template that was edited or removed since
            return ()

    def locate(self, line: int) -> str:
        """The template position of a GLSL line, counted from 1, as `gemv.comp.j2:41`."""
        if not 1 <= line <= len(self.line_map):
            return f"line {line} of the rendered GLSL"
        file, number = self.line_map[line - 1]
        return f"{file}:{number}"


def render(family: KernelFamily, precision: str | DType, params: Mapping[str, Any]) -> Rendered:
    """The GLSL of a variant.

    The template sees every parameter by its name, and `family`, `precision` (names) and
    `signature`. See templates/README.md.

    Raises:
        SpaceError: the parameters are not of the family's space.
        RenderError: the template is missing or wrong, or uses a name that is not defined; says
            where.
    """
    dtype = family.precision(precision)
    values = family.space.normalise(params)
    variant = family.variant(dtype, values).name
    signature = family.signature(dtype, values)
    _check_names(signature, variant)
    context = {**values, "family": family.name, "precision": dtype.name, "signature": signature}
    roots = (family.templates,) if family.templates is not None else ()
    plain, marked = _environments((*roots, templates_dir()))
    glsl = _render(plain, family.template, context, variant)
    return Rendered(
        variant=variant,
        glsl=glsl,
        sha256=hashlib.sha256(glsl.encode()).hexdigest(),
        template_sha256=_sha256(_sources(plain, family.template, variant)),
        marked=partial(_render, marked, family.template, context, variant),
    )


def template_sha256(family: KernelFamily) -> str:
    """SHA-256 of the family's template and every file that it uses, in hex.

    Raises:
        RenderError: one of them is missing or does not parse.
    """
    return _sha256(template_sources(family))


def template_sources(family: KernelFamily) -> Iterator[tuple[str, str]]:
    """Name and text of the family's template and of every file that it uses, the template first.

    Raises:
        RenderError: one of them is missing or does not parse.
    """
    roots = (family.templates,) if family.templates is not None else ()
    plain, _ = _environments((*roots, templates_dir()))
    return _sources(plain, family.template, family.name)


# ---- Jinja --------------------------------------------------------------------------------


class _Loader(jinja2.BaseLoader):
    """Finds templates in a few folders, the first that has the file."""

    def __init__(self, roots: tuple[Traversable, ...]) -> None:
        self.roots = roots

    def get_source(self, environment: jinja2.Environment, template: str) -> Any:
        source = self.read(template)
        # The name stands in for the file's path, so that tracebacks carry it.
        return source, template, lambda: self.read(template) == source

    def read(self, template: str) -> str:
        parts = template.split("/")
        if all(part not in ("", ".", "..") for part in parts):
            for root in self.roots:
                file = root.joinpath(*parts)
                if file.is_file():
                    return file.read_text(encoding="utf-8")
        raise jinja2.TemplateNotFound(template)


class _Markers(Extension):
    """Puts a marker in front of every piece of template text, and after every newline in it.

    It works on tokens: what is inside of tags, expressions and comments is not text any more, and
    whitespace control has been applied.
    """

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """The tokens, with the text in them marked."""
        for token in stream:
            if token.type == "data":
                pieces = token.value.split("\n")
                marked = [
                    f"\x01{stream.name}:{token.lineno + i}\x02{piece}"
                    for i, piece in enumerate(pieces)
                ]
                token = Token(token.lineno, token.type, "\n".join(marked))
            yield token


@lru_cache(maxsize=8)
def _environments(
    roots: tuple[Traversable, ...],
) -> tuple[jinja2.Environment, jinja2.Environment]:
    """One environment that renders what is compiled, and one that renders it with markers."""
    plain = jinja2.Environment(
        loader=_Loader(roots),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        cache_size=-1,
    )
    return plain, plain.overlay(extensions=[_Markers], cache_size=-1)


def _render(
    environment: jinja2.Environment, template: str, context: Mapping[str, Any], variant: str
) -> str:
    try:
        return environment.get_template(template).render(context)
    except jinja2.TemplateNotFound as error:
        raise RenderError(f"no template {error.name!r} (variant {variant})") from error
    except jinja2.TemplateSyntaxError as error:
        place = f"{error.name or template}:{error.lineno}"
        raise RenderError(f"{place}: {error.message} (variant {variant})") from error
    except Exception as error:  # whatever an expression of the template raises
        place = _place(error.__traceback__) or template
        kind = "" if isinstance(error, jinja2.UndefinedError) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        raise RenderError(f"{place}: {kind}{text} (variant {variant})") from error


def _place(traceback: TracebackType | None) -> str | None:
    """The innermost template position of a traceback; Jinja rewrites them to template lines."""
    place = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename.endswith(".j2"):
            place = f"{code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


# ---- lines and hashes ---------------------------------------------------------------------


def _line_map(marked: str, glsl: str) -> tuple[tuple[str, int], ...]:
    """Template file and line of each GLSL line.

    Empty where the markers changed what was rendered: a template may compare text that a macro
    made, or was edited since. Errors then name the line of the rendered GLSL.
    """
    if _MARKER.sub("", marked) != glsl:
        return ()
    places: list[tuple[str, int]] = []
    last = ("", 0)
    for line in marked.split("\n"):
        # The marker right before the first visible character, else the last one of the line.
        here = last
        at = 0
        for match in _MARKER.finditer(line):
            if line[at : match.start()].strip():
                break
            here, at = (match[1], int(match[2])), match.end()
        places.append(here)
        last = here
    return tuple(places)


def _sha256(sources: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for file in sources:
        for part in file:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _sources(
    environment: jinja2.Environment, template: str, variant: str
) -> Iterator[tuple[str, str]]:
    loader = environment.loader
    assert isinstance(loader, _Loader)
    pending, seen = [template], {template}
    while pending:
        name = pending.pop()
        try:
            source = loader.read(name)
            used = _references(environment, source)
        except jinja2.TemplateNotFound as error:
            raise RenderError(f"no template {error.name!r} (variant {variant})") from error
        except jinja2.TemplateSyntaxError as error:
            place = f"{name}:{error.lineno}"
            raise RenderError(f"{place}: {error.message} (variant {variant})") from error
        if None in used:
            raise RenderError(f"{name}: includes a file by a computed name; write the name out")
        yield name, source
        new = sorted({n for n in used if n is not None} - seen)
        seen.update(new)
        pending.extend(new)


@lru_cache(maxsize=256)
def _references(environment: jinja2.Environment, source: str) -> tuple[str | None, ...]:
    return tuple(meta.find_referenced_templates(environment.parse(source)))


def _check_names(signature: Signature, variant: str) -> None:
    if signature.addressing == "address":
        for binding in signature.bindings:
            if binding.name in _NOT_A_BINDING:
                raise RenderError(
                    f"binding {binding.name!r} of {variant}: with buffer addresses that name "
                    "would also replace a swizzle or member; use a longer one"
                )
