//! One file per noun: request type, a few calls to [`crate::repo`], response type.

pub mod auth;
pub mod members;
pub mod tenant;

mod body;
mod cursor;

pub use body::Body;
pub use cursor::Cursors;
