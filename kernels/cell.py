"""Interpolation in a Fourier volume and its adjoint, in vector instructions that LLVM does not find by itself."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_F32, _I32 = ir.FloatType(), ir.IntType(32)


def _intrinsic(function: Any) -> Any:
    """Numba's `intrinsic`; to a type checker the result would still want the typing context."""
    return intrinsic(function)


def _vector(size: int) -> ir.VectorType:
    return ir.VectorType(_F32, size)


def _packed(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
    """The vector of these values."""
    vector = ir.Constant(_vector(len(values)), ir.Undefined)
    for k, value in enumerate(values):
        vector = builder.insert_element(vector, value, ir.Constant(_I32, k))
    return vector


def _start(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value) -> ir.Value:
    """Pointer to the first element of an array."""
    return context.make_array(kind)(context, builder, array).data


def _place(builder: ir.IRBuilder, start: ir.Value, index: ir.Value, size: int) -> ir.Value:
    """Pointer to the vector that begins at an element."""
    return builder.bitcast(builder.gep(start, [index]), _vector(size).as_pointer())


def _part(builder: ir.IRBuilder, vector: ir.Value, *elements: int) -> ir.Value:
    """The vector of these elements."""
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(_I32, len(elements)), elements))


def _times_plus(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once where the processor can: the same in every place that LLVM compiles it to."""
    suffix = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(builder.module.declare_intrinsic(f"llvm.fmuladd.{suffix}", fnty=kind), (a, b, c))


def _between(builder: ir.IRBuilder, fraction: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    return _times_plus(builder, fraction, builder.fsub(high, low), low)


@_intrinsic
def times_plus(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c of float32, rounded alike wherever it stands: in a sum of products, LLVM may fuse this or that one."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _times_plus(builder, *arguments)

    return types.float32(*(types.float32,) * 3), codegen


@_intrinsic
def interpolate_cell(  # type: ignore[no-untyped-def]
    typing_context, voxels, at, row, plane, fx, fy, fz, sign, out, k
):
    """Set out[k], out[k + 1] to the value inside a cell; conjugated where `sign` is -1, 0 where it is 0.

    voxels, out : contiguous float32, real and imaginary parts in turn. at : uint64, index of the cell's lowest corner;
    row, plane : uint64, from there to the corners one step up in y and in z. fx, fy, fz : float32, position in the
    cell. No index is checked.
    """
    indices, floats = (types.uint64,) * 3, (types.float32,) * 4
    signature = types.void(voxels, *indices, *floats, out, types.uint64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        voxels, at, row, plane, fx, fy, fz, sign, out, k = arguments
        data = _start(context, builder, signature.args[0], voxels)
        target = _start(context, builder, signature.args[8], out)

        def pair(index: ir.Value) -> ir.Value:
            """Two neighbours along x."""
            return builder.load(_place(builder, data, index, 4), align=4)

        above = builder.add(at, plane)
        y = _packed(builder, *[fy] * 4)
        low = _between(builder, y, pair(at), pair(builder.add(at, row)))
        high = _between(builder, y, pair(above), pair(builder.add(above, row)))
        both = _between(builder, _packed(builder, *[fz] * 4), low, high)
        x = _packed(builder, fx, fx)
        value = _between(builder, x, _part(builder, both, 0, 1), _part(builder, both, 2, 3))
        signs = _packed(builder, builder.fmul(sign, sign), sign)
        builder.store(builder.fmul(value, signs), _place(builder, target, k, 2), align=4)
        return context.get_dummy_value()

    return signature, codegen


@_intrinsic
def add_to_pair(typing_context, data, weight, at, share, fx, real, imag, w):  # type: ignore[no-untyped-def]
    """Add `share` of a value to the two voxels it lies between along x: real, imag to `data`, w to `weight`.

    data : contiguous float32, real and imaginary parts in turn; weight : contiguous float32. at : uint64, the first of
    the two. share, fx, real, imag, w : float32, fx the distance from it. No index is checked.
    """
    signature = types.void(data, weight, types.uint64, *(types.float32,) * 5)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        data, weight, at, share, fx, real, imag, w = arguments
        g1 = builder.fmul(share, fx)
        g0 = builder.fsub(share, g1)

        def add(array: ir.Value, kind: Any, index: ir.Value, shares: ir.Value, values: ir.Value, size: int) -> None:
            place = _place(builder, _start(context, builder, kind, array), index, size)
            builder.store(_times_plus(builder, shares, values, builder.load(place, align=4)), place, align=4)

        first = builder.shl(at, ir.Constant(at.type, 1))
        shares, values = _packed(builder, g0, g0, g1, g1), _packed(builder, real, imag, real, imag)
        add(data, signature.args[0], first, shares, values, 4)
        add(weight, signature.args[1], at, _packed(builder, g0, g1), _packed(builder, w, w), 2)
        return context.get_dummy_value()

    return signature, codegen
