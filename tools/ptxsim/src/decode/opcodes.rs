//! What an opcode may carry: the decoder refuses every other modifier or type by name before it looks at their combination.

/// Every opcode that is implemented, with the modifiers and types it may carry, in the words of the PTX ISA. `*` stands for those
/// that have fixed shapes (matrix instructions, asynchronous copies), which the decoder compares as a whole.
pub const OPCODES: &[(&str, &str)] = &[
    ("abs", "ftz s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("activemask", "b32"),
    ("add", "cc rn rz rm rp ftz sat u16 u16x2 u32 u64 s16 s16x2 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("addc", "cc u32 u64 s32 s64"),
    ("and", "pred b16 b32 b64"),
    ("applypriority", "global L2::evict_normal"),
    (
        "atom",
        "relaxed acquire release acq_rel cta cluster gpu sys global shared shared::cta shared::cluster add and or xor exch cas \
         inc dec min max noftz L2::cache_hint v2 v4 b16 b32 b64 u32 u64 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64",
    ),
    ("bar", "cta warp sync arrive red popc and or pred u32"),
    ("barrier", "cta cluster sync arrive wait red popc and or aligned relaxed acquire release pred u32"),
    ("bfe", "u32 u64 s32 s64"),
    ("bfi", "b32 b64"),
    ("bfind", "shiftamt u32 u64 s32 s64"),
    ("bmsk", "clamp wrap b32"),
    ("bra", "uni"),
    ("brev", "b32 b64"),
    ("brkpt", ""),
    ("brx", "idx uni"),
    ("call", "uni"),
    ("clz", "b32 b64"),
    ("cnot", "b16 b32 b64"),
    ("copysign", "f32 f64"),
    ("cos", "approx ftz f32"),
    ("cp", "*"),
    (
        "createpolicy",
        "fractional range L2::evict_first L2::evict_last L2::evict_normal L2::evict_unchanged cvt L2 global b64",
    ),
    (
        "cvt",
        "rn rz rm rp rni rzi rmi rpi rna ftz sat relu satfinite u8 u16 u32 u64 s8 s16 s32 s64 f16 f16x2 bf16 bf16x2 tf32 \
         f32 f64 e4m3x2 e5m2x2",
    ),
    ("cvta", "to global shared shared::cta shared::cluster local const param param::entry u64"),
    ("div", "approx full rn rz rm rp ftz u16 u32 u64 s16 s32 s64 f32 f64"),
    ("dp2a", "lo hi u32 s32"),
    ("dp4a", "u32 s32"),
    ("elect", "sync"),
    ("ex2", "approx ftz f16 f16x2 bf16 bf16x2 f32"),
    ("exit", ""),
    ("fence", "*"),
    ("fma", "rn rz rm rp ftz sat relu f16 f16x2 bf16 bf16x2 f32 f64"),
    ("fns", "b32"),
    ("getctarank", "shared::cluster u32 u64"),
    ("griddepcontrol", "launch_dependents wait"),
    ("isspacep", "global shared shared::cta shared::cluster local const param param::entry"),
    (
        "ld",
        "weak volatile relaxed acquire cta cluster gpu sys global shared shared::cta shared::cluster local const param \
         param::entry param::func ca cg cs lu cv nc L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last \
         L1::no_allocate L2::64B L2::128B L2::256B L2::cache_hint v2 v4 b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64",
    ),
    ("ldmatrix", "*"),
    ("ldu", "global v2 v4 b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64"),
    ("lg2", "approx ftz f32"),
    ("lop3", "or and b32"),
    ("mad", "lo hi wide cc rn rz rm rp ftz sat u16 u32 u64 s16 s32 s64 f32 f64"),
    ("mad24", "lo hi u32 s32"),
    ("madc", "lo hi cc u32 u64 s32 s64"),
    ("mapa", "shared::cluster u32 u64"),
    ("match", "all any sync b32 b64"),
    ("max", "ftz NaN xorsign abs relu u16 u16x2 u32 u64 s16 s16x2 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("mbarrier", "*"),
    ("membar", "cta gl sys"),
    ("min", "ftz NaN xorsign abs relu u16 u16x2 u32 u64 s16 s16x2 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("mma", "*"),
    ("mov", "pred b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"),
    ("movmatrix", "*"),
    ("mul", "lo hi wide rn rz rm rp ftz sat u16 u32 u64 s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("mul24", "lo hi u32 s32"),
    ("nanosleep", "u32"),
    ("neg", "ftz s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("not", "pred b16 b32 b64"),
    ("or", "pred b16 b32 b64"),
    ("pmevent", "mask"),
    ("popc", "b32 b64"),
    ("prefetch", "global local L1 L2 L2::evict_last L2::evict_normal const param tensormap"),
    ("prefetchu", "L1"),
    ("prmt", "b32 f4e b4e rc8 ecl ecr rc16"),
    ("rcp", "approx rn rz rm rp ftz f32 f64"),
    (
        "red",
        "relaxed release cta cluster gpu sys global shared shared::cta shared::cluster add and or xor inc dec min max noftz L2::cache_hint v2 v4 b32 b64 u32 u64 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64",
    ),
    ("redux", "sync add min max and or xor b32 u32 s32"),
    ("rem", "u16 u32 u64 s16 s32 s64"),
    ("ret", "uni"),
    ("rsqrt", "approx ftz f32 f64"),
    ("sad", "u16 u32 u64 s16 s32 s64"),
    ("selp", "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"),
    (
        "set",
        "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz b16 b32 b64 u16 u32 u64 s16 s32 s64 \
         f16 f16x2 bf16 bf16x2 f32 f64",
    ),
    ("setmaxnreg", "inc dec sync aligned u32"),
    (
        "setp",
        "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz b16 b32 b64 u16 u32 u64 s16 s32 s64 \
         f16 f16x2 bf16 bf16x2 f32 f64",
    ),
    ("shf", "l r clamp wrap b32"),
    ("shfl", "sync up down bfly idx b32"),
    ("shl", "b16 b32 b64"),
    ("shr", "b16 b32 b64 u16 u32 u64 s16 s32 s64"),
    ("sin", "approx ftz f32"),
    ("slct", "ftz b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64"),
    ("sqrt", "approx rn rz rm rp ftz f32 f64"),
    (
        "st",
        "weak volatile relaxed release cta cluster gpu sys global shared shared::cta shared::cluster local param param::func wb \
         cg cs wt L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate L2::cache_hint \
         v2 v4 b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f32 f64",
    ),
    ("stmatrix", "*"),
    ("sub", "cc rn rz rm rp ftz sat u16 u32 u64 s16 s32 s64 f16 f16x2 bf16 bf16x2 f32 f64"),
    ("subc", "cc u32 u64 s32 s64"),
    ("szext", "clamp wrap u32 s32"),
    ("tanh", "approx f16 f16x2 bf16 bf16x2 f32"),
    ("testp", "finite infinite number notanumber normal subnormal f32 f64"),
    ("trap", ""),
    ("vote", "sync all any uni ballot pred b32"),
    ("wgmma", "*"),
    ("wmma", "*"),
    ("xor", "pred b16 b32 b64"),
];

/// The part of an opcode that it may not carry; `Err` if there is no such opcode.
pub(crate) fn unknown_part<'a>(opcode: &str, parts: &[&'a str]) -> Result<Option<&'a str>, ()> {
    let row = OPCODES.binary_search_by(|(name, _)| (*name).cmp(opcode)).map_err(|_| ())?;
    let known = OPCODES[row].1;
    if known == "*" {
        return Ok(None);
    }
    Ok(parts.iter().copied().find(|p| !known.split_ascii_whitespace().any(|k| k == *p)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn opcodes_are_in_order() {
        assert!(super::OPCODES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
