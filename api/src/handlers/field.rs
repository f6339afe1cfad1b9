//! Fields of requests: what each may hold, with the field's path in the refusal.

use serde::{Deserialize, Deserializer};
use time::{Date, OffsetDateTime};

use crate::error::ApiError;
use crate::repo::date;
use crate::repo::users::is_email;

/// Most that anything may amount to, in minor units.
pub const MOST: i64 = 1_000_000_000_000;

/// For fields that may be left out, which stays as it is, or be `null`, which clears.
pub fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(d).map(Some)
}

/// For a field that may be left out and is never null.
pub fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// The same of a day.
pub fn given_day<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Date>, D::Error> {
    date::deserialize(d).map(Some)
}

/// A text of 1 to `most` characters, without spaces around it and without control characters.
pub fn name(field: &str, raw: &str, most: usize) -> Result<String, ApiError> {
    let text = raw.trim();
    if text.is_empty() || text.chars().count() > most {
        return Err(ApiError::invalid(field, &format!("must have 1 to {most} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(field, "must not have control characters"));
    }
    Ok(text.to_owned())
}

/// A text that may be left out; empty is the same.
pub fn optional(value: Option<String>) -> Option<String> {
    value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// A text that may be left out, of at most so many characters, on one line.
pub fn optional_name(field: &str, value: Option<String>, most: usize) -> Result<Option<String>, ApiError> {
    optional(value).map(|text| name(field, &text, most)).transpose()
}

/// A text that may be left out, of at most so many characters, on several lines.
pub fn text(field: &str, value: Option<String>, most: usize) -> Result<Option<String>, ApiError> {
    let text = optional(value);
    let is_fine = |t: &str| {
        t.chars().count() <= most && !t.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    };
    if text.as_deref().is_some_and(|t| !is_fine(t)) {
        return Err(ApiError::invalid(
            field,
            &format!("must have at most {most} characters, and no control characters"),
        ));
    }
    Ok(text)
}

/// A telephone number that may be left out.
pub fn phone(value: Option<String>) -> Result<Option<String>, ApiError> {
    let phone = optional(value);
    let plausible = |p: &str| {
        (5..=32).contains(&p.len())
            && p.bytes().all(|b| b.is_ascii_digit() || b"+ ()-./".contains(&b))
            && p.bytes().filter(u8::is_ascii_digit).count() >= 4
    };
    if phone.as_deref().is_some_and(|p| !plausible(p)) {
        return Err(ApiError::invalid("phone", "must be a telephone number"));
    }
    Ok(phone)
}

/// An e-mail address that may be left out.
pub fn email(value: Option<String>) -> Result<Option<String>, ApiError> {
    let email = optional(value);
    if email.as_deref().is_some_and(|e| !is_email(e)) {
        return Err(ApiError::invalid("email", "must be an e-mail address"));
    }
    Ok(email)
}

/// A sum in minor units.
pub fn amount(field: &str, amount: i64) -> Result<i64, ApiError> {
    if (1..=MOST).contains(&amount) {
        Ok(amount)
    } else {
        Err(ApiError::invalid(field, "must be from 1 to 1000000000000 minor units"))
    }
}

/// A code of ISO 4217, by its form.
pub fn currency(field: &str, code: String) -> Result<String, ApiError> {
    if code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase()) {
        Ok(code)
    } else {
        Err(ApiError::invalid(field, "must be a code of ISO 4217"))
    }
}

/// A time in UTC, to the microsecond, which is what the database keeps. None where that is no year of ours.
pub fn utc(at: OffsetDateTime) -> Option<OffsetDateTime> {
    let at = at.checked_to_offset(time::UtcOffset::UTC)?;
    (1900..=9000).contains(&at.year()).then(|| at.replace_nanosecond(at.microsecond() * 1000).unwrap_or(at))
}

/// A day of birth.
pub fn birth_date(field: &str, day: Date) -> Result<Date, ApiError> {
    if day.year() < 1850 || day > tomorrow() {
        return Err(ApiError::invalid(field, "must be a day from 1850 until today"));
    }
    Ok(day)
}

/// A day on which something was paid; today, if left out.
pub fn paid_on(field: &str, day: Option<Date>) -> Result<Date, ApiError> {
    let day = day.unwrap_or_else(|| OffsetDateTime::now_utc().date());
    if day.year() < 1900 || day > tomorrow() {
        return Err(ApiError::invalid(field, "must be a day from 1900 until today"));
    }
    Ok(day)
}

/// Somewhere it is tomorrow already.
fn tomorrow() -> Date {
    let today = OffsetDateTime::now_utc().date();
    today.next_day().unwrap_or(today)
}
