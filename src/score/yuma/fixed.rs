//! The chain's fixed-point number: 32 bits before the point, 32 behind it (`I32F32`), rounded down after every operation.
//!
//! An epoch's shares depend on this rounding in their last digits, and whether a weight is clipped can depend on a last
//! digit. Where the chain would overflow, which no input that it accepts can make it do, these numbers stop at the end of
//! their range.

use std::iter::Sum;
use std::ops::{Add, Div, Mul, Sub};

use crate::chain::FULL_SHARE;

const FRACTION_BITS: u32 = 32;

/// A number in units of 2⁻³².
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fixed(i64);

impl Fixed {
    pub(super) const ZERO: Self = Self(0);
    pub(super) const ONE: Self = Self(1 << FRACTION_BITS);

    pub(super) fn from_int(value: u16) -> Self {
        Self(i64::from(value) << FRACTION_BITS)
    }

    /// A part of a whole, at most 1; 0 of nothing.
    pub(super) fn ratio(part: u64, whole: u128) -> Self {
        let ratio = (u128::from(part) << FRACTION_BITS).checked_div(whole).unwrap_or(0);
        Self(i64::try_from(ratio).unwrap_or(i64::MAX)).min(Self::ONE)
    }

    /// As a share out of [`FULL_SHARE`], rounded down.
    pub(super) fn to_share(self) -> u16 {
        u16::try_from((self * Self::from_int(FULL_SHARE)).0 >> FRACTION_BITS).unwrap_or(FULL_SHARE)
    }

    /// As a share out of [`FULL_SHARE`] if the largest of all were the full one, rounded to the nearest.
    pub(super) fn to_share_of(self, largest: Self) -> u16 {
        (self * Self::from_int(FULL_SHARE) / largest).round()
    }

    /// The nearest whole number, of a half the larger one.
    fn round(self) -> u16 {
        const HALF: i64 = 1 << (FRACTION_BITS - 1);
        u16::try_from(self.0.saturating_add(HALF) >> FRACTION_BITS).unwrap_or(FULL_SHARE)
    }

    /// So much of an amount, rounded down.
    pub(super) fn of(self, amount: u64) -> u64 {
        let part = (i128::from(self.0) * i128::from(amount)) >> FRACTION_BITS;
        u64::try_from(part.max(0)).unwrap_or(u64::MAX)
    }

    /// Exactly.
    pub(super) fn to_f64(self) -> f64 {
        self.0 as f64 / Self::ONE.0 as f64
    }

    fn clamp(value: i128) -> Self {
        Self(value.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }
}

/// A whole number as a share of the largest one.
pub(super) fn upscale(value: u16, largest: u16) -> u16 {
    let (value, largest, full) = (Fixed::from_int(value), Fixed::from_int(largest), Fixed::from_int(FULL_SHARE));
    // Two orders, as on the chain, whose numbers have no room for a product of two larger ones.
    let scaled = if largest > Fixed::from_int(32_768) { value * (full / largest) } else { value * full / largest };
    scaled.round()
}

impl Add for Fixed {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Fixed {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Mul for Fixed {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        Self::clamp((i128::from(self.0) * i128::from(other.0)) >> FRACTION_BITS)
    }
}

impl Div for Fixed {
    type Output = Self;

    /// 0 where the divisor is: every division of an epoch leaves what has the sum 0 alone.
    fn div(self, other: Self) -> Self {
        if other.0 == 0 {
            return Self::ZERO;
        }
        Self::clamp((i128::from(self.0) << FRACTION_BITS) / i128::from(other.0))
    }
}

impl Sum for Fixed {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Self::ZERO, Self::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_down_and_stops_at_the_ends() {
        let third = Fixed::ratio(1, 3);
        assert_eq!(third, Fixed(1_431_655_765));
        assert_eq!(third * Fixed::from_int(3), Fixed(4_294_967_295));
        assert_eq!((third.to_share(), Fixed::ONE.to_share(), Fixed::from_int(2).to_share()), (21_844, 65_535, 65_535));
        assert_eq!(Fixed::from_int(1) / Fixed::from_int(3), third);
        assert_eq!(third / Fixed::ZERO, Fixed::ZERO);
        // 0.3333… of 65,535 of the largest, which is 1: to the nearest.
        assert_eq!((third.to_share_of(Fixed::ONE), third.to_share_of(third)), (21_845, 65_535));
        assert_eq!((third.of(10), Fixed::ONE.of(u64::MAX)), (3, u64::MAX));
        assert_eq!(Fixed(i64::MAX) + Fixed::ONE, Fixed(i64::MAX));
        assert_eq!(Fixed(i64::MAX) * Fixed(i64::MAX), Fixed(i64::MAX));
        assert_eq!(Fixed(i64::MAX) / Fixed(1), Fixed(i64::MAX));
        assert_eq!(Fixed::ratio(u64::MAX, u64::MAX.into()), Fixed::ONE);
        assert_eq!(Fixed::ratio(7, 0), Fixed::ZERO);
    }
}
