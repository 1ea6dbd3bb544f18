"""The error-correcting code of the watermark: 32 bits of payload become 256 code bits and come back from soft values.

payload (32) + check (24) + tail (8 zeros) → convolutional code, rate 1/4, constraint length 9 → keyed interleaver and
scrambler. Generators 463, 535, 733, 745 (octal), free distance 24: Larsen, "Short convolutional codes with maximal free
distance for rates 1/2, 1/3 and 1/4", IEEE Trans. Inf. Theory 1973. Decoding is Viterbi's with soft values (Forney,
"The Viterbi algorithm", Proc. IEEE 1973). The check is the 24-bit CRC of RFC 4880, section 6.1: a word of noise decodes
to some message, and that message carries the right check once in 2²⁴ times.
"""

import functools
import hashlib

import numpy as np

PAYLOAD_BITS, CHECK_BITS = 32, 24
CODE_BITS = 256
_GENERATORS = (0o463, 0o535, 0o733, 0o745)
_MEMORY = 8
_STATES = 1 << _MEMORY
_STEPS = PAYLOAD_BITS + CHECK_BITS + _MEMORY
_CRC_POLYNOMIAL, _CRC_START = 0x864CFB, 0xB704CE


def encode_payload(payload: int) -> np.ndarray:
    """The 256 code bits of a payload, as float32 [256] of ±1. Raises ValueError outside of 0 … 2³² − 1."""
    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise ValueError(f"the payload {payload} does not fit in {PAYLOAD_BITS} bits")
    message = payload << CHECK_BITS | check_of(payload)
    state, out = 0, np.empty((_STEPS, len(_GENERATORS)), np.float32)
    for step in range(_STEPS):
        at = PAYLOAD_BITS + CHECK_BITS - 1 - step
        register = (message >> at & 1 if at >= 0 else 0) << _MEMORY | state
        out[step] = [1 - 2 * ((register & g).bit_count() & 1) for g in _GENERATORS]
        state = register >> 1
    order, scramble = _shuffle()
    return out.reshape(-1)[order] * scramble


def decode_payload(soft: np.ndarray) -> int | None:
    """The payload of soft code bits [256] (sign: the bit, size: how sure), or None where the check fails.

    Values that are not finite, or all zero, say nothing.
    """
    if not np.isfinite(soft).all() or not soft.any():
        return None
    payload, check = most_likely(soft)
    return payload if check == check_of(payload) else None


def most_likely(soft: np.ndarray) -> tuple[int, int]:
    """The payload [32 bits] that soft code bits [256] speak for most, and the check [24 bits] that came with it, be it
    right or wrong."""
    order, scramble = _shuffle()
    values = np.zeros(CODE_BITS)
    values[order] = soft * scramble
    message = _viterbi(values.reshape(_STEPS, len(_GENERATORS))) >> _MEMORY
    return message >> CHECK_BITS, message & (1 << CHECK_BITS) - 1


def keyed(name: str, count: int) -> np.ndarray:
    """`count` uint64 drawn from the public key and a name: SHAKE-256, so the same in every version of every library."""
    stream = hashlib.shake_256(f"latentswap watermark 1 {name}".encode()).digest(8 * count)
    return np.frombuffer(stream, "<u8")


def _viterbi(values: np.ndarray) -> int:
    """The most likely sequence of input bits, tail included, of soft values [steps, 4], as an integer."""
    outputs = _branches()  # ±1 [bit that leaves, new state, 4]
    # A new state s has the two predecessors 2s and 2s + 1 (mod 2⁸); its own top bit is the input.
    before = (np.arange(_STATES)[None] << 1 | np.arange(2)[:, None]) & (_STATES - 1)
    metric = np.full(_STATES, -np.inf)
    metric[0] = 0
    chosen = np.empty((len(values), _STATES), np.uint8)
    for step, value in enumerate(values):
        reached = metric[before] + outputs @ value
        chosen[step] = reached[1] > reached[0]
        metric = np.maximum(reached[0], reached[1])
    state, message = 0, 0  # the tail leads back to 0
    for step in range(len(values) - 1, -1, -1):
        message |= (state >> _MEMORY - 1) << (len(values) - 1 - step)
        state = (state << 1 | int(chosen[step, state])) & (_STATES - 1)
    return message


@functools.cache
def _branches() -> np.ndarray:
    registers = np.arange(_STATES)[None] << 1 | np.arange(2)[:, None]
    parity = [[[(int(r) & g).bit_count() & 1 for g in _GENERATORS] for r in row] for row in registers]
    return 1.0 - 2.0 * np.array(parity)


@functools.cache
def _shuffle() -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keyed("order of code bits", CODE_BITS), kind="stable")
    return order, (1 - 2 * (keyed("scrambler", CODE_BITS) & 1).astype(np.int64)).astype(np.float32)


def check_of(payload: int) -> int:
    """The check [24 bits] of a payload."""
    value = _CRC_START
    for byte in payload.to_bytes(4, "big"):
        value ^= byte << 16
        for _ in range(8):
            value <<= 1
            if value & 0x1000000:
                value ^= _CRC_POLYNOMIAL | 0x1000000
    return value
