"""The filter of system calls, run by a small interpreter of its own, so that each machine is tested on any."""

from __future__ import annotations

import struct

import pytest

from taskpass.sandbox.terminal import terminal_filter

X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, REFUSE = 0x7FFF0000, 0x00050001


def answer(program, *, architecture, number, request=0):
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, architecture, 0, 0, request, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x15:
            at += yes if value == operand else no
        elif code == 0x35:
            at += yes if value >= operand else no
        elif code == 0x06:
            return operand


@pytest.mark.parametrize(("machine", "architecture", "ioctl"), [("x86_64", X86, 16), ("aarch64", ARM, 29)])
class TestEachMachine:
    @pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0xABCD00005412])
    def test_typing_into_the_terminal_is_refused(self, machine, architecture, ioctl, request_number):
        program = terminal_filter(machine)
        assert answer(program, architecture=architecture, number=ioctl, request=request_number) == REFUSE

    @pytest.mark.parametrize("request_number", [0x5401, 0x5413, 0x5410])
    def test_other_requests_to_the_terminal_are_allowed(self, machine, architecture, ioctl, request_number):
        program = terminal_filter(machine)
        assert answer(program, architecture=architecture, number=ioctl, request=request_number) == ALLOW

    def test_other_calls_are_allowed_whatever_their_arguments(self, machine, architecture, ioctl):
        for number in {0, 1, 59, 221, 435} - {ioctl}:
            assert answer(terminal_filter(machine), architecture=architecture, number=number, request=0x5412) == ALLOW

    def test_calls_of_another_architecture_or_variant_are_refused(self, machine, architecture, ioctl):
        program = terminal_filter(machine)
        assert answer(program, architecture=0x40000003, number=54, request=0x5412) == REFUSE
        assert answer(program, architecture=architecture, number=0x40000000 + 514, request=0x5412) == REFUSE


def test_for_an_unknown_machine_there_is_no_filter():
    assert terminal_filter("riscv64") == b""
