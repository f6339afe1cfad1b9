//! One file per noun: request type, a few calls to [`crate::repo`], response type.

pub mod api_keys;
pub mod audit;
pub mod auth;
pub mod loans;
pub mod members;
pub mod passwords;
pub mod patients;
pub mod payments;
pub mod roles;
pub mod tenant;
pub mod totp;
pub mod users;

mod body;
mod cursor;
mod page;
mod write;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use uuid::Uuid;

pub use body::Body;
pub use cursor::Cursors;
pub use page::{List, Page};
pub use write::{Answer, Asked, Work, once};

use crate::error::ApiError;

/// An id in a path. What is none is nobody's: 404.
fn id(path: Result<Path<String>, PathRejection>) -> Result<Uuid, ApiError> {
    let Path(text) = path.map_err(|_| ApiError::NotFound)?;
    Uuid::try_parse(&text).map_err(|_| ApiError::NotFound)
}

/// A name of 1 to `most` characters, without spaces around it and without control characters.
fn name(field: &str, raw: &str, most: usize) -> Result<String, ApiError> {
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
fn optional(value: Option<String>) -> Option<String> {
    value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// A telephone number that may be left out.
fn phone(value: Option<String>) -> Result<Option<String>, ApiError> {
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
