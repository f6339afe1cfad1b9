//! One file per noun: request type, a few calls to [`crate::repo`], response type.

pub mod api_keys;
pub mod audit;
pub mod auth;
pub mod csv;
pub mod etag;
pub mod families;
pub mod field;
pub mod files;
pub mod hospitalizations;
pub mod invoice_payments;
pub mod invoices;
pub mod loans;
pub mod members;
pub mod overview;
pub mod passwords;
pub mod patients;
pub mod payments;
pub mod roles;
pub mod settings;
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
pub use page::{List, Page, query};
pub use write::{Answer, Asked, Work, once};

use crate::error::ApiError;

/// An id in a path. What is none is nobody's: 404.
fn id(path: Result<Path<String>, PathRejection>) -> Result<Uuid, ApiError> {
    let Path(text) = path.map_err(|_| ApiError::NotFound)?;
    Uuid::try_parse(&text).map_err(|_| ApiError::NotFound)
}

/// Two ids in a path.
fn ids(path: Result<Path<(String, String)>, PathRejection>) -> Result<(Uuid, Uuid), ApiError> {
    let Path((first, second)) = path.map_err(|_| ApiError::NotFound)?;
    let parse = |text: &str| Uuid::try_parse(text).map_err(|_| ApiError::NotFound);
    Ok((parse(&first)?, parse(&second)?))
}
