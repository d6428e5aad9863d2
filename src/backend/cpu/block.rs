//! How rows of the op table say their CPU kernel: `block!(float |a| a.exp())`.
//!
//! A row names the class of operand types, the operands, and an expression in terms of the class's trait in
//! [`number`](super::number). The result has the operands' type, or the one after `=>`:
//!
//! ```ignore
//! block!(float |a| a.tanh())                          // F32, F64
//! block!(float |x| x * T::of(0.5))                    // T is the type; floats have operators
//! block!(num |a, b| a.add(b))                         // F32, F64, I32, U32: methods, which wrap
//! block!(int |a, b| a & b; bool |a, b| a && b)        // the first class that fits
//! block!(all |a, b| a == b => bool)                   // and Bool
//! block!(mask all |m, a, b| if m { a } else { b })    // the first operand is a bool
//! ```
//!
//! Bodies become `#[inline(always)]` closures: a loop over a call is not vectorised.
//!
//! [`cast`] and `math::sin::kernel` are such kernels too.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::number::{Cast, Value};
use super::simd::{Work, vectorized};
use crate::graph::dtype::DType;
pub use crate::graph::program::BlockFn;

/// A value for [`MapOp::cpu`](crate::graph::program::MapOp::cpu); see [the module](self).
#[macro_export]
macro_rules! block {
    ($($class:ident $($of:ident)? |$($x:ident),+| $body:expr $(=> $result:ident)?);+ $(;)?) => {
        &|operand: $crate::graph::dtype::DType,
          result: $crate::graph::dtype::DType|
         -> Option<$crate::graph::program::BlockFn> {
            None$(.or_else(|| $crate::block!(
                @class $class $($of)? (operand, result) [$($x)+] ($body) [$($result)?]
            )))+
        }
    };
    (@class mask $class:ident $io:tt [$m:ident $($x:ident)*] $body:tt $result:tt) => {
        $crate::block!(@types $class $io [$m] [$($x)*] $body $result)
    };
    (@class $class:ident $io:tt [$($x:ident)+] $body:tt $result:tt) => {
        $crate::block!(@types $class $io [] [$($x)+] $body $result)
    };
    (@types float $($rest:tt)*) => { $crate::block!(@kernel Real { F32 f32 F64 f64 } $($rest)*) };
    (@types num $($rest:tt)*) => { $crate::block!(@kernel Num { F32 f32 F64 f64 I32 i32 U32 u32 } $($rest)*) };
    (@types int $($rest:tt)*) => { $crate::block!(@kernel Int { I32 i32 U32 u32 } $($rest)*) };
    (@types all $($rest:tt)*) => {
        $crate::block!(@kernel Value { F32 f32 F64 f64 I32 i32 U32 u32 Bool bool } $($rest)*)
    };
    (@types bool ($operand:ident, $wanted:ident) [] [$($x:ident)+] ($body:expr) [$($result:ident)?]) => {{
        #[inline(always)]
        fn f($($x: bool),+) -> bool { $body }
        (($operand, $wanted) == ($crate::graph::dtype::Bool, $crate::graph::dtype::Bool))
            .then_some(&$crate::block!(@run [] [$($x)+] bool bool f) as $crate::graph::program::BlockFn)
    }};
    (@kernel $trait:ident { $($dtype:ident $t:ident)+ } ($operand:ident, $wanted:ident)
        $m:tt $xs:tt $body:tt $result:tt) => {{
        $crate::block!(@fn $trait $m $xs $body $result);
        match $operand {
            $($crate::graph::dtype::DType::$dtype => $crate::block!(@pick $wanted $m $xs $t $result),)+
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }};
    (@fn $trait:ident [$($m:ident)?] [$($x:ident)+] ($body:expr) []) => {
        #[inline(always)]
        fn f<T: $crate::backend::cpu::number::$trait>($($m: bool,)? $($x: T),+) -> T { $body }
    };
    (@fn $trait:ident [$($m:ident)?] [$($x:ident)+] ($body:expr) [$result:ident]) => {
        #[inline(always)]
        fn f<T: $crate::backend::cpu::number::$trait>($($m: bool,)? $($x: T),+) -> $result { $body }
    };
    (@pick $wanted:ident $m:tt $xs:tt $t:ident []) => { $crate::block!(@pick $wanted $m $xs $t [$t]) };
    (@pick $wanted:ident $m:tt $xs:tt $t:ident [$r:ident]) => {
        (<$r as $crate::backend::cpu::number::Value>::DTYPE == $wanted)
            .then_some(&$crate::block!(@run $m $xs $t $r f::<$t>) as $crate::graph::program::BlockFn)
    };
    (@run [] [$a:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run1::<$t, $r, _>(out, args, #[inline(always)] |$a| $f($a))
    };
    (@run [] [$a:ident $b:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run2::<$t, $t, $r, _>(out, args, #[inline(always)] |$a, $b| $f($a, $b))
    };
    (@run [] [$a:ident $b:ident $c:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run3::<$t, $t, $t, $r, _>(out, args, #[inline(always)] |$a, $b, $c| $f($a, $b, $c))
    };
    (@run [] [$a:ident $b:ident $c:ident $d:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run4::<$t, $t, $t, $t, $r, _>(out, args, #[inline(always)] |$a, $b, $c, $d| $f($a, $b, $c, $d))
    };
    (@run [] [$a:ident $b:ident $c:ident $d:ident $e:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run5::<$t, $t, $t, $t, $t, $r, _>(out, args, #[inline(always)] |$a, $b, $c, $d, $e| $f($a, $b, $c, $d, $e))
    };
    (@run [$m:ident] [$a:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run2::<bool, $t, $r, _>(out, args, #[inline(always)] |$m, $a| $f($m, $a))
    };
    (@run [$m:ident] [$a:ident $b:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run3::<bool, $t, $t, $r, _>(out, args, #[inline(always)] |$m, $a, $b| $f($m, $a, $b))
    };
    (@run [$m:ident] [$a:ident $b:ident $c:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run4::<bool, $t, $t, $t, $r, _>(out, args, #[inline(always)] |$m, $a, $b, $c| $f($m, $a, $b, $c))
    };
    (@run [$m:ident] [$a:ident $b:ident $c:ident $d:ident] $t:ident $r:ident $f:expr) => {
        |out: &mut [u8], args: &[&[u8]]| $crate::backend::cpu::block::run5::<bool, $t, $t, $t, $t, $r, _>(out, args, #[inline(always)] |$m, $a, $b, $c, $d| $f($m, $a, $b, $c, $d))
    };
}

macro_rules! loops {
    ($($run:ident $loop:ident $n:literal: $($x:ident $t:ident $i:literal),+;)*) => {$(
        struct $loop<'a, $($t: Value,)+ R: Value, F> {
            out: &'a mut [R::Stored],
            $($x: &'a [$t::Stored],)+
            f: F,
        }
        impl<$($t: Value,)+ R: Value, F: Fn($($t),+) -> R> Work for $loop<'_, $($t,)+ R, F> {
            type Output = ();
            #[inline(always)]
            fn run(self) {
                let n = self.out.len();
                $(let $x = &self.$x[..n];)+
                for i in 0..n {
                    self.out[i] = (self.f)($($t::load($x[i])),+).store();
                }
            }
        }
        #[doc = concat!("A block of a function of ", stringify!($n), " operand(s).")]
        #[inline]
        pub fn $run<$($t: Value,)+ R: Value, F: Fn($($t),+) -> R>(out: &mut [u8], args: &[&[u8]], f: F) {
            vectorized($loop::<$($t,)+ R, F> {
                out: bytemuck::cast_slice_mut(out),
                $($x: bytemuck::cast_slice(args[$i]),)+
                f,
            });
        }
    )*};
}
loops! {
    run1 Loop1 1: a A 0;
    run2 Loop2 2: a A 0, b B 1;
    run3 Loop3 3: a A 0, b B 1, c C 2;
    run4 Loop4 4: a A 0, b B 1, c C 2, d D 3;
    run5 Loop5 5: a A 0, b B 1, c C 2, d D 3, e E 4;
}

/// The kernel of a conversion, for every pair of dtypes.
pub fn cast(from: DType, to: DType) -> BlockFn {
    fn pair<A: Value + Cast<B>, B: Value>() -> BlockFn {
        &|out: &mut [u8], args: &[&[u8]]| {
            run1::<A, B, _>(
                out,
                args,
                #[inline(always)]
                |a| a.cast(),
            )
        }
    }
    fn to_any<A>(to: DType) -> BlockFn
    where
        A: Value + Cast<bool> + Cast<u32> + Cast<i32> + Cast<f16> + Cast<f32> + Cast<f64>,
    {
        match to {
            DType::Bool => pair::<A, bool>(),
            DType::U32 => pair::<A, u32>(),
            DType::I32 => pair::<A, i32>(),
            DType::F16 => pair::<A, f16>(),
            DType::F32 => pair::<A, f32>(),
            DType::F64 => pair::<A, f64>(),
        }
    }
    match from {
        // These two are what half-precision code is made of.
        DType::F16 if to == DType::F32 => &|out: &mut [u8], args: &[&[u8]]| {
            let from: &[u16] = bytemuck::cast_slice(args[0]);
            from.reinterpret_cast::<f16>().convert_to_f32_slice(bytemuck::cast_slice_mut(out));
        },
        DType::F32 if to == DType::F16 => &|out: &mut [u8], args: &[&[u8]]| {
            let to: &mut [u16] = bytemuck::cast_slice_mut(out);
            to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(bytemuck::cast_slice(args[0]));
        },
        DType::Bool => to_any::<bool>(to),
        DType::U32 => to_any::<u32>(to),
        DType::I32 => to_any::<i32>(to),
        DType::F16 => to_any::<f16>(to),
        DType::F32 => to_any::<f32>(to),
        DType::F64 => to_any::<f64>(to),
    }
}
