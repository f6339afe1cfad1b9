//! Times out of rows.

use std::error::Error;

use time::OffsetDateTime;
use tokio_postgres::types::{FromSql, Type};

/// A `timestamptz`, read from the number of microseconds that `timestamptz_send` writes,
/// in half of the steps of the general conversion, which adds them to a day. Lists are full of times.
pub(super) struct At(pub(super) OffsetDateTime);

/// 2000-01-01, from which PostgreSQL counts, in seconds after 1970-01-01.
const EPOCH: i64 = 946_684_800;

impl<'a> FromSql<'a> for At {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        let within = u32::try_from(micros.rem_euclid(1_000_000))?;
        let seconds = OffsetDateTime::from_unix_timestamp(EPOCH + micros.div_euclid(1_000_000))?;
        Ok(Self(seconds.replace_microsecond(within)?))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TIMESTAMPTZ
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_general_conversion_reads_them() {
        let step = 1_234_567_890_123_457_i64;
        for n in -51..=204 {
            let raw = (n * step).to_be_bytes();
            let of = Type::TIMESTAMPTZ;
            let ours = At::from_sql(&of, &raw).expect("a time").0;
            assert_eq!(ours, OffsetDateTime::from_sql(&of, &raw).expect("a time"), "{n}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        // Infinite, and too long ago; and what is no number of them.
        for raw in [i64::MAX.to_be_bytes().as_slice(), &i64::MIN.to_be_bytes(), &[0; 7], &[]] {
            assert!(At::from_sql(&Type::TIMESTAMPTZ, raw).is_err());
        }
        assert!(!At::accepts(&Type::TIMESTAMP) && !At::accepts(&Type::INT8));
    }
}
