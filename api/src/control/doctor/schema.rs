//! What an organisation's database should consist of: as in a database that was made for the comparison, out of the same
//! migrations.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gmah_shared::migrate;
use tokio_postgres::Client;

use crate::control::servers::{Access, TENANT_GROUP};
use crate::control::{ControlError, During as _, template};
use crate::modules;

/// Objects, and what organisations' roles may do with each table.
#[derive(Debug, Default)]
pub(super) struct Schema {
    objects: BTreeSet<String>,
    rights: BTreeMap<String, String>,
}

/// By set of modules.
#[derive(Debug, Default)]
pub(super) struct References(HashMap<String, Schema>);

impl References {
    /// Makes the reference of those modules, if it is not known yet.
    pub(super) async fn ensure(
        &mut self,
        admin: &Client,
        access: &Access,
        modules: &[String],
    ) -> Result<(), ControlError> {
        let sets = modules::migrations(modules);
        let key = migrate::fingerprint(&sets);
        if self.0.contains_key(&key) {
            return Ok(());
        }
        let look = async |db: Client| Schema::of(&db, TENANT_GROUP).await;
        self.0.insert(key, template::in_scratch(access, admin, &sets, look).await?);
        Ok(())
    }

    /// That of those modules.
    pub(super) fn of(&self, modules: &[String]) -> Option<&Schema> {
        self.0.get(&migrate::fingerprint(&modules::migrations(modules)))
    }
}

impl Schema {
    /// Of a database, as that role may use it. What belongs to nobody of ours (an index that was made for one organisation) is in it as well.
    pub(super) async fn of(db: &Client, role: &str) -> Result<Self, ControlError> {
        let what = "reading the schema";
        let objects = db.query(OBJECTS, &[]).await.during(what)?;
        let rights = db.query(RIGHTS, &[&role]).await.during(what)?;
        Ok(Self {
            objects: objects.iter().map(|r| r.get(0)).collect(),
            rights: rights.iter().map(|r| (r.get(0), r.get(1))).collect(),
        })
    }

    /// What `found` has not.
    pub(super) fn missing_in<'a>(&'a self, found: &'a Self) -> Vec<&'a str> {
        self.objects.difference(&found.objects).map(String::as_str).collect()
    }

    /// Tables with which organisations' roles may do something else than here, and what they may do here.
    pub(super) fn other_rights<'a>(&'a self, found: &'a Self) -> Vec<(&'a str, &'a str)> {
        self.rights
            .iter()
            .filter(|(table, may)| found.rights.get(*table).is_some_and(|other| other != *may))
            .map(|(table, may)| (table.as_str(), may.as_str()))
            .collect()
    }
}

const OBJECTS: &str = "
    select format('table %s', c.relname) from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
    union all
    select format('column %s.%s %s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                  case when a.attnotnull then ' not null' else '' end)
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
    union all
    select format('index %s', pg_get_indexdef(i.indexrelid)) from pg_index i join pg_class c on c.oid = i.indrelid
        where c.relnamespace = 'public'::regnamespace and i.indisvalid
    union all
    select format('constraint %s.%s %s', c.relname, k.conname, pg_get_constraintdef(k.oid))
        from pg_constraint k join pg_class c on c.oid = k.conrelid
        where c.relnamespace = 'public'::regnamespace and k.convalidated
    union all
    select format('trigger %s', pg_get_triggerdef(t.oid)) from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'public'::regnamespace and not t.tgisinternal and t.tgenabled <> 'D'
    union all
    select format('function %s', md5(pg_get_functiondef(p.oid)) || ' ' || p.proname) from pg_proc p
        where p.pronamespace = 'public'::regnamespace and p.prokind = 'f'
            and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')";

const RIGHTS: &str = "
    select c.relname, concat_ws(', ',
        case when has_table_privilege(who.oid, c.oid, 'select') then 'select' end,
        case when has_table_privilege(who.oid, c.oid, 'insert') then 'insert' end,
        case when has_table_privilege(who.oid, c.oid, 'update') then 'update' end,
        case when has_table_privilege(who.oid, c.oid, 'delete') then 'delete' end,
        case when has_table_privilege(who.oid, c.oid, 'truncate') then 'truncate' end)
    -- Where its role is missing or in no group, its group's: that is a fault of the server's.
    from pg_class c, (select r.oid from pg_roles r where r.rolname in ($1, 'gmah_tenant') and not r.rolsuper
                          and pg_has_role(r.oid, 'gmah_tenant', 'usage')
                      order by r.rolname <> $1 limit 1) who
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relowner <> who.oid";
