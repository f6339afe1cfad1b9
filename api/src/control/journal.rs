//! The journal of operations in the master: what was asked, how far it came.

use serde_json::Value;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{ControlError, During as _};
use gmah_shared::tenant::TenantId;

/// An operation that is running.
pub(super) struct Operation {
    id: Uuid,
    position: i32,
}

/// The newest operation of a kind on an organisation.
pub(super) struct Found {
    pub(super) id: Uuid,
    pub(super) input: Value,
    pub(super) done: bool,
}

/// The newest operation of `kind` on an organisation.
pub(super) async fn latest(
    master: &Client,
    tenant: TenantId,
    kind: &str,
) -> Result<Option<Found>, ControlError> {
    let row = master
        .query_opt(
            "select id, input, state from operations where organization_id = $1 and kind = $2
             order by created_at desc, id desc limit 1",
            &[&tenant.as_uuid(), &kind],
        )
        .await
        .during("reading the journal")?;
    Ok(row.map(|r| Found {
        id: r.get("id"),
        input: r.get("input"),
        done: r.get::<_, String>("state") == "done",
    }))
}

impl Operation {
    /// Goes on with an operation that a killed runner left behind.
    pub(super) async fn take_over(master: &Client, id: Uuid) -> Result<Self, ControlError> {
        master
            .execute(
                "update operation_steps set state = 'failed', finished_at = now()
                 where operation_id = $1 and state = 'running'",
                &[&id],
            )
            .await
            .during("writing the journal")?;
        let position: i32 = master
            .query_one(
                "select coalesce(max(position), 0) from operation_steps where operation_id = $1",
                &[&id],
            )
            .await
            .during("reading the journal")?
            .get(0);
        master
            .execute("update operations set state = 'running', error = null where id = $1", &[&id])
            .await
            .during("writing the journal")?;
        Ok(Self { id, position })
    }

    /// Notes that a step begins.
    pub(super) async fn step(&mut self, master: &Client, name: &str) -> Result<(), ControlError> {
        tracing::debug!(operation = %self.id, step = name, "operation");
        master
            .execute(
                "with before as (
                     update operation_steps set state = 'done', finished_at = now()
                     where operation_id = $1 and state = 'running')
                 insert into operation_steps (operation_id, position, name, state)
                 values ($1, $2, $3, 'running')",
                &[&self.id, &(self.position + 1), &name],
            )
            .await
            .during("writing the journal")?;
        self.position += 1;
        Ok(())
    }

    /// Notes that it failed; a later run may take it over.
    pub(super) async fn failed(&self, master: &Client, error: &ControlError) {
        let text = error.to_string();
        let noted = master
            .execute(
                "with step as (
                     update operation_steps set state = 'failed', finished_at = now()
                     where operation_id = $1 and state = 'running')
                 update operations set state = 'failed', error = $2 where id = $1",
                &[&self.id, &text],
            )
            .await;
        if let Err(e) = noted {
            tracing::warn!(error = %e, "the journal did not take the failure");
        }
    }

    /// The operation's id.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

/// Ends an operation, as part of the transaction that makes its result visible.
pub(super) const DONE: &str = "with step as (
        update operation_steps set state = 'done', finished_at = now()
        where operation_id = $1 and state = 'running')
    update operations set state = 'done', finished_at = now() where id = $1";

/// Begins an operation, as part of the transaction that reserves its names.
pub(super) const BEGIN: &str = "insert into operations (id, kind, organization_id, input, actor)
    values ($1, $2, $3, $4, $5)";
