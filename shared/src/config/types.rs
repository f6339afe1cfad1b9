//! Values that cannot be out of range.

use std::ops::Deref;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A duration written with its unit: `"250ms"`, `"10s"`, `"5m"`. At least a millisecond, at most a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// Whole seconds, for defaults.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Milliseconds, for defaults.
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl Deref for HumanDuration {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let parsed = humantime::parse_duration(&text).map_err(|e| {
            serde::de::Error::custom(format!("not a duration with a unit, like \"10s\": {e}"))
        })?;
        if parsed < Duration::from_millis(1) || parsed > Duration::from_secs(366 * 86_400) {
            return Err(serde::de::Error::custom("a duration must be from 1ms to a year"));
        }
        Ok(Self(parsed))
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within<const MIN: usize, const MAX: usize>(usize);

impl<const MIN: usize, const MAX: usize> Within<MIN, MAX> {
    /// A default, which must itself be in range.
    pub const fn new(value: usize) -> Self {
        assert!(value >= MIN && value <= MAX);
        Self(value)
    }

    /// The number.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = i64::deserialize(d)?;
        match usize::try_from(value) {
            Ok(v) if (MIN..=MAX).contains(&v) => Ok(Self(v)),
            _ => Err(serde::de::Error::custom(format!("must be a whole number from {MIN} to {MAX}"))),
        }
    }
}
