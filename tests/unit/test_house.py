"""The house rules that no other tool checks: the contract's comments, the pins, the documented commands, the sizes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from packaging.requirements import Requirement
from packaging.version import Version

from fedclient.cli import app as fedclient_app
from fedserver.cli import app as fedserver_app
from fedtask.brain_mri.settings import DEMO

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
STUBS = ROOT / "fedstream" / "v1"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RPC_COMMENT_PARTS = ("What:", "Retry:", "Resume:", "Errors:")
MAX_TRACKED_BYTES = 512 * 1024

# Field numbers in descriptor.proto, of which the paths of a SourceCodeInfo.Location are made.
MESSAGE, ENUM, SERVICE = 4, 5, 6
MESSAGE_FIELD, NESTED_MESSAGE, NESTED_ENUM, ONEOF = 2, 3, 4, 8
ENUM_VALUE = 2
METHOD = 2

ElementPath = tuple[int, ...]


# --- The contract ---


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Every .proto file as protoc reads it, with its comments."""
    image = tmp_path_factory.mktemp("contract") / "protos.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}"]
    command += [f"--descriptor_set_out={image}", "--include_source_info", *map(str, PROTOS)]
    subprocess.run(command, check=True)
    return list(FileDescriptorSet.FromString(image.read_bytes()).file)


def comments_by_path(file: FileDescriptorProto) -> dict[ElementPath, str]:
    return {
        tuple(location.path): (location.leading_comments + location.trailing_comments).strip()
        for location in file.source_code_info.location
    }


def walk_enum(enum: EnumDescriptorProto, path: ElementPath, name: str) -> Iterator[tuple[ElementPath, str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, ENUM_VALUE, index), f"{name}.{value.name}"


def walk_message(message: DescriptorProto, path: ElementPath, name: str) -> Iterator[tuple[ElementPath, str]]:
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, MESSAGE_FIELD, index), f"{name}.{field.name}"
    # Presence of an `optional` field is kept in a oneof of its own, which protoc makes and nobody can comment.
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in synthetic:
            yield (*path, ONEOF, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from walk_message(nested, (*path, NESTED_MESSAGE, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from walk_enum(enum, (*path, NESTED_ENUM, index), f"{name}.{enum.name}")


def walk_methods(file: FileDescriptorProto) -> Iterator[tuple[ElementPath, str]]:
    for index, service in enumerate(file.service):
        for method_index, method in enumerate(service.method):
            yield (SERVICE, index, METHOD, method_index), f"{service.name}.{method.name}"


def walk_file(file: FileDescriptorProto) -> Iterator[tuple[ElementPath, str]]:
    """Every element that a person wrote, as its path in the descriptor and its dotted name."""
    for index, message in enumerate(file.message_type):
        yield from walk_message(message, (MESSAGE, index), message.name)
    for index, enum in enumerate(file.enum_type):
        yield from walk_enum(enum, (ENUM, index), enum.name)
    for index, service in enumerate(file.service):
        yield (SERVICE, index), service.name
    yield from walk_methods(file)


def test_contract_every_element_has_a_comment(contract: list[FileDescriptorProto]) -> None:
    elements = 0
    bare = []
    for file in contract:
        comments = comments_by_path(file)
        for path, name in walk_file(file):
            elements += 1
            if not comments.get(path):
                bare.append(f"{file.name}: {name}")

    assert bare == []
    assert elements > 0


def test_contract_every_rpc_says_what_retry_resume_and_errors_in_order(contract: list[FileDescriptorProto]) -> None:
    parts_found = {}
    for file in contract:
        comments = comments_by_path(file)
        for path, name in walk_methods(file):
            words = [line.strip().split(" ")[0] for line in comments[path].splitlines() if line.strip()]
            parts_found[name] = tuple(word for word in words if word in RPC_COMMENT_PARTS)

    assert parts_found == dict.fromkeys(parts_found, RPC_COMMENT_PARTS)
    assert parts_found


def test_contract_every_rpc_names_the_errors_that_any_call_can_end_with(contract: list[FileDescriptorProto]) -> None:
    found, unnamed = 0, []
    for file in contract:
        comments = comments_by_path(file)
        for path, name in walk_methods(file):
            found += 1
            said = comments[path] + comments[path[:2]]  # its own comment and the service's
            errors = ("INVALID_ARGUMENT/INVALID_REQUEST", "RESOURCE_EXHAUSTED/LIMIT_EXCEEDED")
            unnamed += [f"{name}: {error}" for error in errors if error not in said]

    assert unnamed == []
    assert found > 0


# --- The stubs and the releases they run with ---


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)["project"]
    assert isinstance(table, dict)
    return table


def floor_of(package: str) -> Version:
    """The lowest release of `package` that the project's dependencies admit."""
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    requirement = next(found for found in map(Requirement, dependencies) if found.name == package)
    return max(Version(bound.version) for bound in requirement.specifier if bound.operator in {">=", "==", "~="})


def stamps(pattern: str, files: str) -> dict[str, Version]:
    found = {path.name: re.search(pattern, path.read_text()) for path in STUBS.glob(files)}
    return {name: Version(match[1]) for name, match in found.items() if match}


@pytest.mark.parametrize(
    ("package", "files", "pattern"),
    [
        ("protobuf", "*_pb2.py", r"# Protobuf Python Version: (\S+)"),
        ("grpcio", "*_pb2_grpc.py", r"GRPC_GENERATED_VERSION = '(\S+)'"),
    ],
)
def test_stubs_required_floor_is_not_below_their_stamp(package: str, files: str, pattern: str) -> None:
    stamped = stamps(pattern, files)

    assert len(stamped) == len(list(STUBS.glob(files))) > 0
    assert max(stamped.values()) <= floor_of(package), f"raise the floor of {package} in pyproject.toml to the stamp"


# --- The documented commands ---


def commands_in(text: str, program: str) -> list[str]:
    """The command lines of `program` in a Markdown text: in fenced and in indented blocks, and in `code`."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [line for line in lines if re.match(rf"{program}( |$)", line)]


def test_documents_every_make_command_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    unknown = []
    commands = [(path, command) for path in DOCUMENTS for command in commands_in(path.read_text(), "make")]
    for path, command in commands:
        words = re.sub(r"\s#.*|'[^']*'|\"[^\"]*\"|[\[\]]", "", command).split()[1:]
        variables = {word.split("=")[0] for word in words if "=" in word}
        unknown += [f"{path.name}: {command}" for word in words if "=" not in word and word not in targets]
        unknown += [f"{path.name}: {command}" for name in variables if not re.search(rf"\b{name}\b", makefile)]

    assert unknown == []
    assert commands


@pytest.mark.parametrize("program", ["fedserver", "fedclient"])
def test_documents_every_option_of_a_command_is_one_that_it_has(program: str) -> None:
    commands = {"fedserver": fedserver_app, "fedclient": fedclient_app}
    known = typer.main.get_command(commands[program]).commands
    found = [(path, line) for path in DOCUMENTS for line in commands_in(path.read_text(), program)]
    unknown = []
    for path, line in found:
        words = re.sub(r"\s#.*|\s-- .*|'[^']*'|\"[^\"]*\"", "", line).split()[1:]
        names = {name for word in words[:1] for name in _options_of(known, word)}
        unknown += [f"{path.name}: {line}" for word in words if word.startswith("-") and word not in names]

    assert unknown == []
    assert len(found) > 10


def _options_of(commands: Mapping[str, Any], name: str) -> set[str]:
    if name.startswith("-"):
        return {"--help", "-h", "--version"}
    assert name in commands, f"there is no command {name}"
    return {"--help", *(option for one in commands[name].params for option in (*one.opts, *one.secondary_opts))}


def test_help_of_every_command_has_an_example_of_it() -> None:
    apps = {"fedserver": fedserver_app, "fedclient": fedclient_app}
    helps = {
        f"{program} {name}": command.help or ""
        for program, app in apps.items()
        for name, command in typer.main.get_command(app).commands.items()
    }

    assert [name for name, text in helps.items() if f"Example: {name}" not in text] == []
    assert len(helps) > 20


def test_demo_runs_as_many_rounds_on_the_phantom_as_it_says() -> None:
    said = {one.name: one.help for one in typer.main.get_command(fedserver_app).commands["demo"].params}
    assert said["rounds_"] == f"[default: 10, on the phantom {DEMO.rounds}]"


# --- The maps of the packages ---


@pytest.mark.parametrize("package", ["fedclient", "fedserver", "fedserver/store", "fedstream", "fedtask"])
def test_package_docstring_says_of_each_module_what_is_in_it(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text()
    told = [name for line in re.findall(r"^- (`.+?`): ", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)]
    there = {path.stem for path in (ROOT / package).glob("*.py")} | {
        path.parent.name for path in (ROOT / package).glob("*/__init__.py")
    }
    assert sorted(told) == sorted(there - {"__init__"})


# --- The documented diagrams ---


def test_documents_no_line_of_a_diagram_has_a_semicolon() -> None:
    # It ends a statement of Mermaid's, so that what follows is an error and no picture is drawn.
    diagrams = {
        path.name: re.findall(r"^```mermaid\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        for path in sorted(ROOT.rglob("*.md"))
        if not {".venv", "node_modules"} & set(path.relative_to(ROOT).parts)
    }
    cut = [
        (name, line) for name, found in diagrams.items() for text in found for line in text.splitlines() if ";" in line
    ]

    assert cut == []
    assert sum(map(len, diagrams.values())) > 1


# --- The checkout ---


def git_lines(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so there is no list of tracked files")
    result = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return result.stdout.splitlines()


def test_checkout_no_tracked_file_is_over_512_kib() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in git_lines("ls-files") if (ROOT / name).is_file()}

    assert {name: size for name, size in sizes.items() if size > MAX_TRACKED_BYTES} == {}
    assert sizes


def test_checkout_every_suppressed_finding_has_a_reason() -> None:
    # The reason follows the rules: S310 - the address is a constant.
    suppression = re.compile(r"#\s*(?:ruff: )?noqa: [A-Z]+\d+(?:, ?[A-Z]+\d+)*(?P<reason>.*)")
    without_reason = []
    for name in git_lines("ls-files", "*.py"):
        path = ROOT / name
        if not path.is_file() or re.search(r"_pb2(_grpc)?\.py$", name):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = suppression.search(line)
            if match and not re.search(r"[a-z]{2}", match["reason"]):
                without_reason.append(f"{name}:{number}")

    assert without_reason == []


def ignored_rules(lines: Sequence[str]) -> dict[str, str]:
    """Each rule that pyproject.toml has ruff ignore, and the comment behind it."""
    start = lines.index("ignore = [")
    end = next(index for index in range(start, len(lines)) if lines[index].startswith("[tool.ruff.lint.flake8"))
    entries = (re.match(r'\s+"([A-Z]+\d*)",\s*(.*)', line) for line in lines[start:end])
    return {entry[1]: entry[2] for entry in entries if entry}


def test_ruff_every_ignored_rule_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    ignored = {*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)}
    reasons = ignored_rules(text.splitlines())

    assert set(reasons) == ignored
    assert [rule for rule, reason in reasons.items() if not re.match(r"# \S+ \S+", reason)] == []


# --- What a command loads at its start ---


@pytest.mark.parametrize("module", ["fedserver.cli", "fedclient.cli"])
def test_command_at_its_start_does_not_load_tensorflow(module: str) -> None:
    code = (
        f"import sys, {module} as cli; assert callable(cli.main);"
        "print(*sorted({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)

    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
    assert find_spec("tensorflow") is not None, "without tensorflow this test shows nothing"
