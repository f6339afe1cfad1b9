//! What organisations settle for themselves, one shape per module: checked when it is written, with defaults for what
//! nobody wrote.
//!
//! They lie in the organisation's own database and are read in the transaction that goes by them, so that a rule holds
//! from the moment in which it is set.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db::{DbError, Query};
use crate::error::ApiError;
use crate::handlers::field;
use crate::language::Language;
use crate::modules::{CORE, LOANS, PATIENTS};
use crate::repo::settings;

/// Settings of a module.
pub trait Settings: Serialize + DeserializeOwned + Default + ToSchema + Send {
    /// The module.
    const MODULE: &'static str;

    /// Refuses what cannot be a rule, with the field's path.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    fn check(&self) -> Result<(), ApiError>;
}

/// As an organisation has settled it, or as it is by default.
///
/// # Errors
/// [`DbError`].
pub async fn of<T: Settings>(db: &mut impl Query) -> Result<T, DbError> {
    let Some(stored) = settings::get(db, T::MODULE).await? else { return Ok(T::default()) };
    // Written by this program, or by one that knew other fields: what does not fit is by default.
    Ok(serde_json::from_value(stored).unwrap_or_else(|e| {
        tracing::error!(module = T::MODULE, error = %e, "settings of another shape: defaults go");
        T::default()
    }))
}

/// Everybody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CoreSettings {
    /// Of letters to people whose language is not known: `en` or `fr`.
    #[schema(value_type = String, pattern = "^(en|fr)$")]
    pub language: Language,
    /// How many days what was done is kept; thirty at least.
    #[schema(minimum = 30, maximum = 36525)]
    pub audit_keep_days: i32,
}

impl Default for CoreSettings {
    fn default() -> Self {
        // Ten years.
        Self { language: Language::En, audit_keep_days: 3653 }
    }
}

impl Settings for CoreSettings {
    const MODULE: &'static str = CORE.key;

    fn check(&self) -> Result<(), ApiError> {
        within("audit_keep_days", self.audit_keep_days, 30, 36_525)
    }
}

/// Rules of a free-loan society.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoansSettings {
    /// The only currency of its loans (ISO 4217); any, if null.
    #[schema(pattern = "^[A-Z]{3}$")]
    pub currency: Option<String>,
    /// Most that a loan may amount to, in minor units; null: no ceiling.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    pub max_amount: Option<i64>,
    /// Most parts in which a loan may come back, a month apart.
    #[schema(minimum = 1, maximum = 240)]
    pub max_installments: i32,
    /// How many members must answer for a loan before it is approved.
    #[schema(minimum = 0, maximum = 20)]
    pub min_guarantors: i32,
    /// Most loans of one member that are approved or active; null: any number.
    #[schema(minimum = 1, maximum = 1000)]
    pub max_open_loans: Option<i32>,
}

impl Default for LoansSettings {
    fn default() -> Self {
        Self {
            currency: None,
            max_amount: None,
            max_installments: 240,
            min_guarantors: 0,
            max_open_loans: None,
        }
    }
}

impl Settings for LoansSettings {
    const MODULE: &'static str = LOANS;

    fn check(&self) -> Result<(), ApiError> {
        if let Some(code) = &self.currency {
            field::currency("currency", code.clone())?;
        }
        if let Some(most) = self.max_amount {
            field::amount("max_amount", most)?;
        }
        within("max_installments", self.max_installments, 1, 240)?;
        within("min_guarantors", self.min_guarantors, 0, 20)?;
        self.max_open_loans.map_or(Ok(()), |n| within("max_open_loans", n, 1, 1000))
    }
}

/// Rules of a hospital.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PatientsSettings {
    /// Of invoices that name no other (ISO 4217).
    #[schema(pattern = "^[A-Z]{3}$")]
    pub currency: String,
    /// Days until an invoice that names no day is due.
    #[schema(minimum = 0, maximum = 3650)]
    pub invoice_due_days: i32,
    /// Wards that there are; any, if there are none here.
    #[schema(max_items = 500)]
    pub wards: Vec<String>,
}

impl Default for PatientsSettings {
    fn default() -> Self {
        Self { currency: "EUR".into(), invoice_due_days: 30, wards: Vec::new() }
    }
}

impl Settings for PatientsSettings {
    const MODULE: &'static str = PATIENTS;

    fn check(&self) -> Result<(), ApiError> {
        field::currency("currency", self.currency.clone())?;
        within("invoice_due_days", self.invoice_due_days, 0, 3650)?;
        if self.wards.len() > 500 {
            return Err(ApiError::invalid("wards", "must be at most 500"));
        }
        for (n, ward) in self.wards.iter().enumerate() {
            let path = format!("wards[{n}]");
            if field::name(&path, ward, 100)? != *ward {
                return Err(ApiError::invalid(&path, "must not have spaces around it"));
            }
        }
        Ok(())
    }
}

fn within(field: &str, value: i32, least: i32, most: i32) -> Result<(), ApiError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ApiError::invalid(field, &format!("must be from {least} to {most}")))
    }
}
