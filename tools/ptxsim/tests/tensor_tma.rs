//! Tensor maps and the boxes they describe, element by element against the definition; bulk reductions.

use ptxsim::tensor::tensormap::{DataType, TensorMap, TensorMapError, TiledParams};
use ptxsim::tensor::tma::{Piece, Reduce, ReduceOp, fill, for_each_piece};
use std::convert::Infallible;

const BASE: u64 = 0x7000_0000;

fn params<'a>(dims: &'a [u64], strides: &'a [u64], box_dims: &'a [u32], ones: &'a [u32]) -> TiledParams<'a> {
    TiledParams {
        data_type: DataType::Bfloat16 as u32,
        address: BASE,
        dims,
        strides,
        box_dims,
        element_strides: &ones[..dims.len()],
        interleave: 0,
        swizzle: 0,
        l2_promotion: 0,
        oob_fill: 0,
    }
}

const ONES: [u32; 5] = [1; 5];

fn pieces(map: &TensorMap, at: &[i32], shared: u32) -> Vec<Piece> {
    let mut out = Vec::new();
    let Ok(()) = for_each_piece(map, at, shared, |piece| -> Result<(), Infallible> {
        out.push(piece);
        Ok(())
    });
    out
}

/// Loads a box by its pieces from a global memory that holds, at each element, its linear index + 1.
fn load(map: &TensorMap, at: &[i32], shared: u32, global: &[u8]) -> Vec<u8> {
    let mut smem = vec![0xee; (u64::from(shared) + map.shared_bytes()) as usize];
    let mut bytes = 0;
    for piece in pieces(map, at, shared) {
        bytes += u64::from(piece.bytes);
        let out = &mut smem[piece.shared as usize..][..piece.bytes as usize];
        match piece.global {
            Some(from) => out.copy_from_slice(&global[(from - BASE) as usize..][..piece.bytes as usize]),
            None => fill(map, out),
        }
    }
    assert_eq!(bytes, map.box_bytes());
    smem
}

/// Chunk exchange as the ISA draws it: within each span, chunk `c` of line `r` goes to `c ^ r`, lines of 128 bytes.
fn swizzled(linear: u32, swizzle: u32) -> u32 {
    let chunks = [1, 2, 4, 8][swizzle as usize];
    let (line, chunk, within) = (linear / 128, linear / 16 % 8, linear % 16);
    let exchanged = chunk / chunks * chunks + ((chunk % chunks) ^ (line % chunks));
    line * 128 + exchanged * 16 + within
}

#[test]
fn every_element_of_every_box_is_where_it_belongs() {
    // (dims, box, element strides); bf16, rows padded to a multiple of 16 bytes and a bit more.
    type Case = (&'static [u64], &'static [u32], &'static [u32]);
    let cases: [Case; 8] = [
        (&[100], &[64], &[1]),
        (&[40, 9], &[16, 4], &[1, 1]),
        (&[40, 9], &[32, 8], &[1, 2]),
        (&[64, 20], &[64, 16], &[1, 1]),
        (&[24, 5, 6], &[8, 3, 2], &[1, 1, 1]),
        (&[24, 5, 6], &[8, 5, 4], &[7, 2, 3]),
        (&[16, 3, 4, 5], &[16, 2, 3, 2], &[1, 1, 1, 1]),
        (&[16, 3, 2, 3, 4], &[16, 2, 2, 2, 3], &[1, 1, 1, 1, 2]),
    ];
    for (dims, box_dims, element_strides) in cases {
        let rank = dims.len();
        let mut strides = Vec::new();
        let mut step = dims[0] * 2;
        for dim in &dims[1..] {
            step = step.next_multiple_of(16) + 16;
            strides.push(step);
            step *= dim;
        }
        let mut global = vec![0; step as usize + 64];
        let place =
            |x: &[i64]| x[1..].iter().zip(&strides).fold(x[0] as u64 * 2, |at, (&x, &s)| at + x as u64 * s);
        // Element number of coordinates, + 1: 0 is the fill.
        let number =
            |x: &[i64]| x.iter().zip(dims).rev().fold(0, |n, (&x, &dim)| n * dim + x as u64) as u16 + 1;
        let mut x = vec![0; rank];
        loop {
            global[place(&x) as usize..][..2].copy_from_slice(&number(&x).to_le_bytes());
            let Some(d) = (0..rank).find(|&d| x[d] + 1 < dims[d] as i64) else { break };
            x[d] += 1;
            x[..d].fill(0);
        }
        for swizzle in 0..4 {
            for nan in [0, 1] {
                let inner = box_dims[0] * 2;
                if swizzle > 0 && inner > 16 << swizzle {
                    continue;
                }
                let given = TiledParams {
                    element_strides,
                    swizzle,
                    oob_fill: nan,
                    ..params(dims, &strides, box_dims, &ONES)
                };
                let map = TensorMap::tiled(&given).unwrap();
                assert_eq!(TensorMap::from_bytes(&map.to_bytes()), Ok(map.clone()));
                let starts: [fn(usize) -> i32; 4] =
                    [|_| 0, |d| d as i32 + 1, |d| -(d as i32) - 3, |d| if d == 0 { 1000 } else { 0 }];
                for start in starts {
                    let at: Vec<i32> = (0..rank).map(start).collect();
                    let shared = 1152; // a multiple of 128, not of 1024: the pattern goes by address
                    let smem = load(&map, &at, shared, &global);
                    // The definition, one element at a time.
                    let extent = |d: usize| {
                        if d < rank {
                            box_dims[d].div_ceil(if d == 0 { 1 } else { element_strides[d] })
                        } else {
                            1
                        }
                    };
                    let pitch = if swizzle == 0 { inner } else { 16 << swizzle };
                    let mut row = 0;
                    for i4 in 0..extent(4) {
                        for i3 in 0..extent(3) {
                            for i2 in 0..extent(2) {
                                for i1 in 0..extent(1) {
                                    for i0 in 0..extent(0) {
                                        let i = [i0, i1, i2, i3, i4];
                                        let x: Vec<i64> = (0..rank)
                                            .map(|d| {
                                                i64::from(at[d])
                                                    + i64::from(
                                                        i[d] * if d == 0 { 1 } else { element_strides[d] },
                                                    )
                                            })
                                            .collect();
                                        let inside =
                                            x.iter().zip(dims).all(|(&x, &dim)| x >= 0 && x < dim as i64);
                                        let want = match (inside, nan) {
                                            (true, _) => number(&x),
                                            (false, 0) => 0,
                                            (false, _) => 0x7fff,
                                        };
                                        let to = swizzled(shared + row * pitch + 2 * i0, swizzle) as usize;
                                        let got = u16::from_le_bytes([smem[to], smem[to + 1]]);
                                        assert_eq!(got, want, "{given:?} at {at:?}, element {i:?}");
                                    }
                                    row += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bad_tensor_maps_are_refused_by_name() {
    let dims = [64, 32];
    let strides = [128];
    let boxes = [32, 8];
    let good = params(&dims, &strides, &boxes, &ONES);
    assert!(TensorMap::tiled(&good).is_ok());
    let refuse = |p: TiledParams, word: &str| match TensorMap::tiled(&p) {
        Err(TensorMapError::Invalid(message)) => assert!(message.contains(word), "{message}"),
        other => panic!("{word}: {other:?}"),
    };
    refuse(TiledParams { address: BASE + 8, ..good.clone() }, "globalAddress");
    refuse(
        TiledParams { dims: &[], strides: &[], box_dims: &[], element_strides: &[], ..good.clone() },
        "tensorRank",
    );
    refuse(TiledParams { dims: &[64, 0], ..good.clone() }, "globalDim[1]");
    refuse(TiledParams { dims: &[(1 << 32) + 1, 2], ..good.clone() }, "globalDim[0]");
    refuse(TiledParams { strides: &[136], ..good.clone() }, "globalStrides[0]");
    refuse(TiledParams { strides: &[1 << 40], ..good.clone() }, "globalStrides[0]");
    refuse(TiledParams { strides: &[], ..good.clone() }, "globalStrides");
    refuse(TiledParams { box_dims: &[32, 257], ..good.clone() }, "boxDim[1]");
    refuse(TiledParams { box_dims: &[0, 8], ..good.clone() }, "boxDim[0]");
    refuse(TiledParams { box_dims: &[12, 8], ..good.clone() }, "multiple of 16");
    refuse(TiledParams { box_dims: &[64, 8], swizzle: 2, ..good.clone() }, "64-byte swizzle");
    refuse(TiledParams { element_strides: &[1, 9], ..good.clone() }, "elementStrides[1]");
    refuse(TiledParams { data_type: 99, ..good.clone() }, "tensorDataType");
    refuse(TiledParams { swizzle: 7, ..good.clone() }, "swizzle");
    refuse(TiledParams { interleave: 3, ..good.clone() }, "interleave");
    refuse(TiledParams { interleave: 1, ..good.clone() }, "rank 2");
    refuse(TiledParams { l2_promotion: 4, ..good.clone() }, "l2Promotion");
    refuse(TiledParams { oob_fill: 2, ..good.clone() }, "oobFill");
    refuse(TiledParams { oob_fill: 1, data_type: DataType::Int32 as u32, ..good.clone() }, "oobFill");
    for unsupported in
        [TiledParams { data_type: 13, ..good.clone() }, TiledParams { swizzle: 4, ..good.clone() }]
    {
        assert!(matches!(TensorMap::tiled(&unsupported), Err(TensorMapError::Unsupported(_))));
    }
    assert_eq!(TensorMap::from_bytes(&[0; 128]), Err(TensorMapError::NotOne));
    // Any damage is an error or another valid map, never a panic.
    let bytes = TensorMap::tiled(&good).unwrap().to_bytes();
    for at in 0..128 {
        for value in [0, 1, 6, 255] {
            let mut damaged = bytes;
            damaged[at] = value;
            let _ = TensorMap::from_bytes(&damaged);
        }
    }
}

#[test]
fn addresses_can_be_replaced() {
    let mut map = TensorMap::tiled(&params(&[64], &[], &[64], &ONES)).unwrap();
    assert!(map.replace_address(BASE + 4).is_err());
    map.replace_address(BASE + 4096).unwrap();
    assert_eq!(pieces(&map, &[0], 0)[0].global, Some(BASE + 4096));
}

#[test]
fn reductions_are_those_of_red() {
    let run = |op: &str, elem: &str, old: u64, x: u64| Reduce::parse(op, elem).unwrap().apply(old, x);
    assert_eq!(run("add", "u32", 0xffff_ffff, 2), 1);
    assert_eq!(run("add", "s32", 5, 0xffff_fffe), 3);
    assert_eq!(run("add", "u64", u64::MAX, 2), 1);
    assert_eq!(run("min", "s32", 5, 0xffff_fffe), 0xffff_fffe);
    assert_eq!(run("min", "u32", 5, 0xffff_fffe), 5);
    assert_eq!(run("max", "s64", u64::MAX, 0), 0);
    assert_eq!(run("max", "u64", u64::MAX, 0), u64::MAX);
    assert_eq!((run("inc", "u32", 6, 7), run("inc", "u32", 7, 7)), (7, 0));
    assert_eq!((run("dec", "u32", 0, 7), run("dec", "u32", 9, 7), run("dec", "u32", 3, 7)), (7, 7, 2));
    assert_eq!(run("xor", "b64", 0xff00, 0x0ff0), 0xf0f0);
    assert_eq!((run("and", "b32", 12, 10), run("or", "b32", 12, 10)), (8, 14));
    assert_eq!(
        run("add", "f32", 1.5f32.to_bits().into(), 2.25f32.to_bits().into()),
        3.75f32.to_bits().into()
    );
    assert_eq!(run("add", "f64", 1.5f64.to_bits(), 2.25f64.to_bits()), 3.75f64.to_bits());
    assert_eq!(run("add", "f16", 0x3c00, 0x0001), 0x3c00, "1 + 2^-24");
    assert_eq!(run("add", "f16", 0x0001, 0x0001), 0x0002, "subnormals stay");
    assert_eq!(run("add", "bf16", 0x3f80, 0x3f80), 0x4000);
    assert_eq!((run("min", "f16", 0x7e00, 0x3c00), run("max", "f16", 0x3c00, 0x7e00)), (0x3c00, 0x3c00));
    assert_eq!((run("min", "bf16", 0x0000, 0x8000), run("max", "bf16", 0x8000, 0x0000)), (0x8000, 0));
    assert_eq!(run("max", "f16", 0x7e00, 0xfe00), 0x7fff);
    for (op, elem) in
        [("min", "f32"), ("inc", "s32"), ("xor", "u32"), ("add", "b32"), ("mul", "u32"), ("add", "u16")]
    {
        assert_eq!(Reduce::parse(op, elem), None, "{op}.{elem}");
    }
    assert!(Reduce::of_tensor(ReduceOp::Xor, DataType::Int32).is_some());
    assert!(Reduce::of_tensor(ReduceOp::Add, DataType::Uint8).is_none());
    // f32 sums lose their subnormals, as those of `red` do; a tensor's where its type says so.
    assert_eq!(run("add", "f32", 0x8000_0001, 0x0040_0000), 0);
    assert_eq!(run("add", "f32", 0x0080_0000, 0x8080_0001), 0x8000_0000);
    let tensor = |ty| Reduce::of_tensor(ReduceOp::Add, ty).unwrap().apply(1, 0x0040_0000);
    assert_eq!((tensor(DataType::Float32), tensor(DataType::Float32Ftz)), (0x0040_0001, 0));
    let mut dst = [1u32, 2, 3].map(u32::to_le_bytes).concat();
    Reduce::parse("add", "u32").unwrap().apply_all(&mut dst, &[10u32, 20, 30].map(u32::to_le_bytes).concat());
    assert_eq!(dst, [11u32, 22, 33].map(u32::to_le_bytes).concat());
}
