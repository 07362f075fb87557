# SPDX-License-Identifier: Apache-2.0
"""
Kernels of integers in kernels.ptx, run instruction by instruction: what is shipped, without a GPU.

It knows as much of PTX (NVIDIA's "PTX ISA", chapter 9) as those kernels use; anything else is an
error. Registers hold numbers without sign, which an instruction's type reads as it says.
"""

from __future__ import annotations

import re

import numpy as np

_COMPARE = {
    'eq': lambda a, b: a == b, 'ne': lambda a, b: a != b, 'lt': lambda a, b: a < b,
    'le': lambda a, b: a <= b, 'gt': lambda a, b: a > b, 'ge': lambda a, b: a >= b,
}
_COMPUTE = {
    'add': lambda a, b: a + b, 'sub': lambda a, b: a - b, 'mul': lambda a, b: a * b,
    'mad': lambda a, b, c: a * b + c, 'min': min, 'max': max, 'neg': lambda a: -a,
    'and': lambda a, b: a & b, 'or': lambda a, b: a | b, 'xor': lambda a, b: a ^ b,
    'not': lambda a: ~a, 'shl': lambda a, b: a << b, 'shr': lambda a, b: a >> b,
    'mov': lambda a: a, 'cvt': lambda a: a, 'cvta': lambda a: a,
    'selp': lambda a, b, which: a if which else b,
}


def _bits(kind: str) -> int:
    """Return the bits of a type such as s32; of a predicate, 1."""
    return 1 if kind == 'pred' else int(kind[1:])


class Memory:
    """Arrays of bytes at addresses far from each other; counts how often each byte is written."""

    def __init__(self, *arrays: np.ndarray):
        self._arrays = [array.reshape(-1) for array in arrays]
        self.addresses = [(i + 1) << 40 for i in range(len(arrays))]
        self.written = [np.zeros(array.size, int) for array in arrays]

    def load(self, address: int) -> int:
        array, index = divmod(address, 1 << 40)
        return int(self._arrays[array - 1][index])

    def store(self, address: int, value: int) -> None:
        array, index = divmod(address, 1 << 40)
        self._arrays[array - 1][index] = value & 255
        self.written[array - 1][index] += 1


class Kernel:
    """One entry of a PTX text."""

    def __init__(self, text: str, name: str):
        body = re.search(rf'\.entry {name}\(.*?\)\n{{(.*?)\n}}', text, re.DOTALL)[1]
        self._code, self._labels = [], {}
        for line in filter(None, map(str.strip, body.split('\n'))):
            if line.endswith(':'):
                self._labels[line[:-1]] = len(self._code)
            elif not line.startswith('.reg'):
                guard, operation, operands = re.fullmatch(
                    r'(?:@(!?%\w+) )?\s*([\w.]+)\s*(.*);', line).groups()
                self._code.append((guard, operation.split('.'),
                                   re.findall(r'\[.*?\]|[^\s,]+', operands)))

    def run(self, memory: Memory, blocks: tuple[int, int], threads: int, *arguments: int) -> None:
        """Run all threads, one after the other."""
        for y, x, thread in np.ndindex(blocks[1], blocks[0], threads):
            self._run({'%ntid.x': threads, '%ctaid.x': x, '%ctaid.y': y, '%tid.x': thread},
                      memory, arguments)

    def _run(self, registers: dict[str, int], memory: Memory, arguments: tuple[int, ...]) -> None:
        def value(operand: str, kind: str) -> int:
            number = registers[operand] if operand[0] == '%' else int(operand, 0)
            bits = _bits(kind)
            number &= (1 << bits) - 1
            return number - (1 << bits) if kind[0] == 's' and number >> (bits - 1) else number

        def address(operand: str) -> int:
            register, offset = re.fullmatch(r'\[(%\w+)\+?(-?\d+)?\]', operand).groups()
            return registers[register] + int(offset or 0)

        at = 0
        while True:
            guard, (name, *parts), operands = self._code[at]
            at += 1
            if guard and bool(registers[guard.lstrip('!')]) == guard.startswith('!'):
                continue
            if name == 'ret':
                return
            target, *sources = operands
            kind = parts[-1] if parts else ''
            if name == 'bra':
                at = self._labels[target]
            elif name == 'ld' and parts[0] == 'param':
                registers[target] = arguments[int(re.search(r'_param_(\d+)', sources[0])[1])]
            elif name == 'ld':
                assert (parts[0], kind) == ('global', 'u8')
                registers[target] = memory.load(address(sources[0]))
            elif name == 'st':
                assert parts == ['global', 'u8']
                memory.store(address(target), registers[sources[0]])
            elif name == 'setp':
                registers[target] = _COMPARE[parts[0]](*(value(each, kind) for each in sources))
            else:
                kinds = [kind] * len(sources)
                if name == 'selp':
                    kinds[2] = 'pred'
                result = kind
                if name in ('mul', 'mad'):
                    assert parts[0] in ('lo', 'wide') and (name, parts[0]) != ('mad', 'wide')
                    result = f'u{2 * _bits(kind)}' if parts[0] == 'wide' else kind
                elif name == 'cvt':
                    result = parts[0]
                elif name in ('shl', 'shr'):
                    kinds[1] = 'u32'
                number = _COMPUTE[name](*map(value, sources, kinds))
                registers[target] = number & ((1 << _bits(result)) - 1)
