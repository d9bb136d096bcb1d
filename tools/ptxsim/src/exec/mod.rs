//! The executor: one decoded instruction applied to the 32 lanes of a warp.
//!
//! A register is a row of 32 lanes, so that each instruction is a short loop that the compiler vectorises. Every
//! instruction is a type that implements [`Exec`]; on x86-64 [`handler`] compiles it for AVX-512 and for AVX2 with FMA, which every
//! machine of the last ten years has, and picks one when the program is decoded.

pub(crate) mod alu;
pub(crate) mod atomics;
pub(crate) mod barrier;
pub(crate) mod block;
pub(crate) mod bulk;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod counting;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod moves;
pub(crate) mod warp;
pub(crate) mod wgmma;

use crate::program::{Op, Program};
use block::{Block, Warp};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One 32-bit register of a warp.
pub(crate) type Row = [u32; LANES];

/// What the warp does after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Goes on at `Cx::pc`.
    Next,
    /// Looks at `Cx::stop`: the fragment cannot go on now.
    Stop,
}

/// Why a fragment stopped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stop {
    /// Its time is up, or it waits for something that others do; it can go on.
    Yield,
    /// All its lanes ended or were handed to another fragment.
    Gone,
    /// It waits at something; the block decides when it goes on, at `Cx::pc`.
    Wait(Wait),
    /// The launch ends.
    Fault,
}

/// What a fragment waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Barrier `id` of its block.
    Barrier(u8),
    /// The lanes of a mask, at the instruction itself or (`warp_barrier`) at any `bar.warp.sync`.
    Lanes { mask: u32, pc: u32, warp_barrier: bool },
    /// A phase of the mbarrier at this address of the cluster's shared memory; tries again at `pc`.
    Mbarrier { rank: u16, addr: u32 },
    /// The cluster barrier.
    Cluster,
}

pub(crate) type Handler = unsafe fn(&mut Cx, &Op, u32) -> Flow;

/// An instruction: `run` applies it to the lanes of the mask.
pub(crate) trait Exec {
    /// # Safety
    /// `cx` must describe a warp of the program that `op` belongs to: its slots are inside the register file.
    unsafe fn run(cx: &mut Cx, op: &Op, mask: u32) -> Flow;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma,bmi1,bmi2,popcnt,lzcnt,f16c")]
unsafe fn run_avx512<E: Exec>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the caller's promise.
    unsafe { E::run(cx, op, mask) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,lzcnt,f16c")]
unsafe fn run_avx2<E: Exec>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: the caller's promise.
    unsafe { E::run(cx, op, mask) }
}

/// The version of `E` for this machine.
pub(crate) fn handler<E: Exec>() -> Handler {
    #[cfg(target_arch = "x86_64")]
    return if *LEVEL == 2 { run_avx512::<E> } else { run_avx2::<E> };
    #[cfg(not(target_arch = "x86_64"))]
    E::run
}

/// `E` compiled once, for instructions that are rare or have nothing to vectorise.
pub(crate) fn cold<E: Exec>() -> Handler {
    #[cfg(target_arch = "x86_64")]
    return run_avx2::<E>;
    #[cfg(not(target_arch = "x86_64"))]
    E::run
}

/// Whether this machine can run the handlers at all: x86-64 needs AVX2 and FMA.
pub(crate) fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return *LEVEL > 0;
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// Declares functions that are compiled like handlers: once for each kind of machine, chosen when they are called.
macro_rules! versions {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty $body:block)*) => { $(
        $(#[$doc])*
        $vis fn $name($($a: $t),*) -> $r {
            #[inline(always)]
            fn plain($($a: $t),*) -> $r $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,fma,bmi1,bmi2,popcnt,lzcnt,f16c")]
                fn avx512($($a: $t),*) -> $r { plain($($a),*) }
                #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,lzcnt,f16c")]
                fn avx2($($a: $t),*) -> $r { plain($($a),*) }
                // SAFETY: `launch` runs nothing on a machine without the features of AVX2; those of AVX-512 are tested here.
                unsafe { if *$crate::exec::LEVEL == 2 { avx512($($a),*) } else { avx2($($a),*) } }
            }
            #[cfg(not(target_arch = "x86_64"))]
            plain($($a),*)
        }
    )* };
}
pub(crate) use versions;

/// 2: AVX-512, 1: AVX2 with FMA, 0: neither.
#[cfg(target_arch = "x86_64")]
static LEVEL: std::sync::LazyLock<u8> = std::sync::LazyLock::new(|| {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("popcnt");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512cd");
    u8::from(avx2) + u8::from(avx512)
});

/// The running fragment and everything its instructions touch.
///
/// Pointers lead into the worker's own blocks and warps and into the program, which outlive the run of a fragment.
pub(crate) struct Cx {
    /// Registers of the warp, and the constants of the program.
    pub banks: [*mut u32; 2],
    pub preds: *mut u32,
    pub pc: u32,
    pub mask: u32,
    /// Where the fragment meets the others of its node.
    pub rpc: u32,
    pub node: u32,
    pub frame: u32,
    /// Backward branches left before it yields.
    pub fuel: i32,
    pub stop: Stop,
    pub prog: *const Program,
    pub block: *mut Block,
    pub warp: *mut Warp,
    pub shared: *mut u8,
    pub shared_bytes: u32,
    /// Local memory: word `w` of lane `l` at `32*w + l`.
    pub local: *mut u32,
    pub params: *const u8,
    pub w: *mut crate::launch::Worker<'static>,
    /// Executions and lanes of each instruction.
    pub counts: *mut [u64; 2],
    pub counting: bool,
    /// Whether each instruction's registers are watched for wgmma.
    pub watch_registers: bool,
    /// Whether any shared, any global check or counter needs the shadow.
    pub track_shared: bool,
    pub track_global: bool,
}

impl Cx {
    #[inline(always)]
    pub fn prog(&self) -> &'static Program {
        // SAFETY: the program outlives the launch, within which all uses lie.
        unsafe { &*self.prog }
    }
    #[inline(always)]
    pub fn block(&mut self) -> &mut Block {
        // SAFETY: the block is owned by this worker and referenced nowhere else while a fragment runs.
        unsafe { &mut *self.block }
    }
    #[inline(always)]
    pub fn warp(&mut self) -> &mut Warp {
        // SAFETY: as for `block`; no reference to the warp is held across this call.
        unsafe { &mut *self.warp }
    }
    #[inline(always)]
    pub fn worker(&mut self) -> &mut crate::launch::Worker<'static> {
        // SAFETY: one worker a thread; no other reference to it is held while a fragment runs.
        unsafe { &mut *self.w }
    }
    /// Pointer to the first word of a slot.
    #[inline(always)]
    pub unsafe fn slot(&self, s: u16) -> *mut u32 {
        // SAFETY: bit 15 selects one of two banks; the caller promises the row is inside it.
        unsafe { self.banks.get_unchecked((s >> 15) as usize).add((s & 0x7fff) as usize * LANES) }
    }
    #[inline(always)]
    pub unsafe fn pred(&self, p: u16) -> u32 {
        // SAFETY: the caller promises the slot exists.
        unsafe { *self.preds.add(p as usize) }
    }
    #[inline(always)]
    pub unsafe fn set_pred(&mut self, p: u16, value: u32, mask: u32) {
        // SAFETY: the caller promises the slot exists.
        unsafe {
            let p = self.preds.add(p as usize);
            *p = *p & !mask | value & mask;
        }
    }
    /// The instruction is tried again later: it has not run.
    pub fn again(&mut self, lanes: u32) {
        self.pc -= 1;
        if self.counting {
            // SAFETY: the instruction that runs has counters.
            let c = unsafe { &mut *self.counts.add(self.pc as usize) };
            c[0] -= 1;
            c[1] -= u64::from(lanes.count_ones());
        }
    }
    #[inline(always)]
    pub fn wait(&mut self, w: Wait) -> Flow {
        self.stop = Stop::Wait(w);
        Flow::Stop
    }
}

/// How a row's lanes are read and written as values.
pub(crate) trait View {
    type T: Copy;
    /// # Safety
    /// The slot must exist and have the view's width.
    unsafe fn get(cx: &Cx, s: u16) -> [Self::T; LANES];
    /// Writes the lanes of the mask.
    /// # Safety
    /// As `get`.
    unsafe fn put(cx: &mut Cx, s: u16, v: [Self::T; LANES], mask: u32);
}

/// The array of `f(0) .. f(31)`, as a loop that vectorises.
#[inline(always)]
pub(crate) fn lanes<T: Copy>(mut f: impl FnMut(usize) -> T) -> [T; LANES] {
    let mut out = std::mem::MaybeUninit::<[T; LANES]>::uninit();
    for i in 0..LANES {
        // SAFETY: `i` is inside the array.
        unsafe { out.as_mut_ptr().cast::<T>().add(i).write(f(i)) };
    }
    // SAFETY: every element was written.
    unsafe { out.assume_init() }
}

/// As [`lanes`] for any length.
#[inline(always)]
pub(crate) fn array<T: Copy, const N: usize>(mut f: impl FnMut(usize) -> T) -> [T; N] {
    let mut out = std::mem::MaybeUninit::<[T; N]>::uninit();
    for i in 0..N {
        // SAFETY: `i` is inside the array.
        unsafe { out.as_mut_ptr().cast::<T>().add(i).write(f(i)) };
    }
    // SAFETY: every element was written.
    unsafe { out.assume_init() }
}

/// The bits of a condition, lane by lane.
#[inline(always)]
pub(crate) fn bits(mut f: impl FnMut(usize) -> bool) -> u32 {
    let mut out = 0;
    for i in 0..LANES {
        out |= u32::from(f(i)) << i;
    }
    out
}

/// Writes the lanes of `mask` to `p`.
#[inline(always)]
pub(crate) unsafe fn blend<T: Copy>(p: *mut T, v: [T; LANES], mask: u32) {
    // SAFETY: the caller promises 32 lanes at `p`.
    unsafe {
        let p = p.cast::<[T; LANES]>();
        if mask == u32::MAX {
            p.write(v);
        } else {
            let old = p.read();
            let mut out = v;
            for i in 0..LANES {
                out[i] = if mask >> i & 1 != 0 { v[i] } else { old[i] };
            }
            p.write(out);
        }
    }
}

macro_rules! plain_view {
    ($($name:ident $t:ty),*) => { $(
        pub(crate) struct $name;
        impl View for $name {
            type T = $t;
            #[inline(always)]
            unsafe fn get(cx: &Cx, s: u16) -> [$t; LANES] {
                // SAFETY: the caller's promise; every bit pattern is a value of the type.
                unsafe { cx.slot(s).cast::<[$t; LANES]>().read() }
            }
            #[inline(always)]
            unsafe fn put(cx: &mut Cx, s: u16, v: [$t; LANES], mask: u32) {
                // SAFETY: the caller's promise.
                unsafe { blend(cx.slot(s).cast::<$t>(), v, mask) }
            }
        }
    )* };
}
plain_view!(U32 u32, S32 i32, F32 f32, U64 u64, S64 i64, F64 f64);

macro_rules! narrow_view {
    ($($name:ident $t:ty, |$bits:ident| $get:expr, |$v:ident| $put:expr);* $(;)?) => { $(
        pub(crate) struct $name;
        impl View for $name {
            type T = $t;
            #[inline(always)]
            unsafe fn get(cx: &Cx, s: u16) -> [$t; LANES] {
                // SAFETY: the caller's promise.
                let rows = unsafe { U32::get(cx, s) };
                lanes(#[inline(always)] |i| { let $bits = rows[i]; $get })
            }
            #[inline(always)]
            unsafe fn put(cx: &mut Cx, s: u16, v: [$t; LANES], mask: u32) {
                // SAFETY: the caller's promise.
                unsafe { U32::put(cx, s, lanes(#[inline(always)] |i| { let $v = v[i]; $put }), mask) }
            }
        }
    )* };
}
use crate::tensor::formats as num;
narrow_view! {
    U16 u16, |b| b as u16, |v| u32::from(v);
    S16 i16, |b| b as i16, |v| u32::from(v as u16);
    U8 u8, |b| b as u8, |v| u32::from(v);
    S8 i8, |b| b as i8, |v| v as i32 as u32;
    F16 f32, |b| num::f16_to_f32(b as u16), |v| u32::from(num::f32_to_f16(v));
    Bf16 f32, |b| num::bf16_to_f32(b as u16), |v| u32::from(num::f32_to_bf16(v));
    F16x2 [f32; 2], |b| [num::f16_to_f32(b as u16), num::f16_to_f32((b >> 16) as u16)],
        |v| u32::from(num::f32_to_f16(v[0])) | u32::from(num::f32_to_f16(v[1])) << 16;
    Bf16x2 [f32; 2], |b| [f32::from_bits(b << 16), f32::from_bits(b & 0xffff_0000)],
        |v| u32::from(num::f32_to_bf16(v[0])) | u32::from(num::f32_to_bf16(v[1])) << 16;
}

/// Declares instructions that compute each lane from the same lane of their sources.
macro_rules! lanewise {
    ($( $(#[$doc:meta])* $name:ident $(<$(const $g:ident : $gt:ty),*>)? : $r:ty = |$($v:ident : $t:ty),*| $e:expr;)*) => { $(
        $(#[$doc])*
        pub(crate) struct $name $(<$(const $g: $gt),*>)?;
        impl $(<$(const $g: $gt),*>)? $crate::exec::Exec for $name $(<$($g),*>)? {
            #[inline(always)]
            unsafe fn run(cx: &mut $crate::exec::Cx, op: &$crate::program::Op, mask: u32) -> $crate::exec::Flow {
                // SAFETY: the caller's promise; the decoder gave each source the width of its view.
                unsafe {
                    use $crate::exec::View;
                    let mut source = 0;
                    $(
                        source += 1;
                        let $v = <$t>::get(cx, op.s[source]);
                    )*
                    let _ = source;
                    let out = $crate::exec::lanes(
                        #[inline(always)]
                        |i| { $( let $v = $v[i]; )* $e },
                    );
                    <$r>::put(cx, op.s[0], out, mask);
                }
                $crate::exec::Flow::Next
            }
        }
    )* };
}
pub(crate) use lanewise;
