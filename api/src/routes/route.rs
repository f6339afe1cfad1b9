//! One row of the table: what may be asked, by whom, and what comes back. Routing, permission and documentation all
//! come from it, so that none of them says something else.

use std::sync::Arc;

use axum::routing::MethodRouter;
use utoipa::ToSchema;
use utoipa::openapi::{Ref, RefOr, Schema};

use crate::server::App;

/// What must be true before a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A valid tenant token.
    Tenant,
    /// And a login.
    User,
}

/// Schemas that a document needs, by name.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;
/// Adds a type's schema, and those of what is in it, and answers a reference to it.
pub(crate) type Described = fn(&mut Schemas) -> RefOr<Schema>;

/// What a route answers when all is well.
#[derive(Debug, Clone, Copy)]
pub enum Answers {
    /// 204.
    Nothing,
    /// A status and a JSON object.
    One(u16, Described),
    /// 200 and a page of such objects.
    List(Described),
    /// 200 and all such objects, which are few by nature, in the form of a page.
    All(Described),
    /// 202: it will be done.
    Later,
    /// 200 and something that is no JSON object of this api, of a media type.
    Other(&'static str),
}

/// A parameter of the query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// JSON Schema, as text.
    pub schema: &'static str,
    /// Whether it must be there.
    pub is_required: bool,
}

impl Parameter {
    /// One that must be there.
    pub const fn required(name: &'static str, about: &'static str, schema: &'static str) -> Self {
        Self { name, about, schema, is_required: true }
    }
}

/// One route.
#[derive(Clone, Copy)]
pub struct Route {
    /// Method.
    pub method: &'static str,
    /// Path pattern.
    pub path: &'static str,
    /// For the documentation.
    pub summary: &'static str,
    /// Who may come in.
    pub access: Access,
    /// Module that it belongs to.
    pub module: Option<&'static str>,
    /// Whether only a person may ask, and no program with a key.
    pub is_personal: bool,
    /// Whether it may take as long as a body takes to come in.
    pub is_slow: bool,
    /// Whether it only reads, and so may be served at a copy of the server. What is written down of who reads is a write.
    pub reads_only: bool,
    /// What the user's role must allow.
    pub permission: Option<&'static str>,
    /// The media type of a body that is no JSON.
    pub takes_file: Option<&'static str>,
    /// The body.
    pub(crate) takes: Option<Described>,
    /// The answer.
    pub answers: Answers,
    /// The query, but for `limit` and `cursor` of lists.
    pub query: &'static [Parameter],
    pub(crate) handler: fn() -> MethodRouter<Arc<App>>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Route {
    /// A route for users.
    pub(crate) const fn new(
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        handler: fn() -> MethodRouter<Arc<App>>,
    ) -> Self {
        let (access, answers) = (Access::User, Answers::Nothing);
        let (module, permission, takes) = (None, None, None);
        let (is_personal, is_slow, reads_only, takes_file) = (false, false, false, None);
        Self {
            method,
            path,
            summary,
            access,
            module,
            is_personal,
            is_slow,
            reads_only,
            takes_file,
            permission,
            takes,
            answers,
            query: &[],
            handler,
        }
    }

    /// Needs no login.
    pub(crate) const fn open(mut self) -> Self {
        self.access = Access::Tenant;
        self
    }

    /// Reads and does nothing else.
    pub(crate) const fn reads(mut self) -> Self {
        self.reads_only = true;
        self
    }

    /// Needs a person, who logged in.
    pub(crate) const fn personal(mut self) -> Self {
        self.is_personal = true;
        self
    }

    /// Belongs to a module.
    pub(crate) const fn of(mut self, module: &'static str) -> Self {
        self.module = Some(module);
        self
    }

    /// Needs a permission.
    pub(crate) const fn may(mut self, permission: &'static str) -> Self {
        self.permission = Some(permission);
        self
    }

    /// Takes a JSON object.
    pub(crate) const fn takes<T: ToSchema>(mut self) -> Self {
        self.takes = Some(described::<T>);
        self
    }

    /// Takes a file of a media type.
    pub(crate) const fn takes_file(mut self, media_type: &'static str) -> Self {
        self.takes_file = Some(media_type);
        self
    }

    /// May take as long as a body takes to come in.
    pub(crate) const fn slow(mut self) -> Self {
        self.is_slow = true;
        self
    }

    /// Answers 200 with an object.
    pub(crate) const fn shows<T: ToSchema>(mut self) -> Self {
        self.answers = Answers::One(200, described::<T>);
        self
    }

    /// Answers 201 with an object.
    pub(crate) const fn creates<T: ToSchema>(mut self) -> Self {
        self.answers = Answers::One(201, described::<T>);
        self
    }

    /// Answers 202 with what is begun.
    pub(crate) const fn begins<T: ToSchema>(mut self) -> Self {
        self.answers = Answers::One(202, described::<T>);
        self
    }

    /// Answers 200 with a page.
    pub(crate) const fn lists<T: ToSchema>(mut self) -> Self {
        self.answers = Answers::List(described::<T>);
        self
    }

    /// Answers 200 with all there are, which are few.
    pub(crate) const fn lists_all<T: ToSchema>(mut self) -> Self {
        self.answers = Answers::All(described::<T>);
        self
    }

    /// Answers 202.
    pub(crate) const fn accepts(mut self) -> Self {
        self.answers = Answers::Later;
        self
    }

    /// Answers 200 with something else.
    pub(crate) const fn gives(mut self, media_type: &'static str) -> Self {
        self.answers = Answers::Other(media_type);
        self
    }

    /// Takes these parameters in its query.
    pub(crate) const fn asks(mut self, query: &'static [Parameter]) -> Self {
        self.query = query;
        self
    }

    /// Whether it takes a JSON body.
    pub fn takes_body(&self) -> bool {
        self.takes.is_some()
    }

    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }
}

fn described<T: ToSchema>(schemas: &mut Schemas) -> RefOr<Schema> {
    T::schemas(schemas);
    let name = T::name();
    schemas.push((name.to_string(), T::schema()));
    RefOr::Ref(Ref::from_schema_name(name))
}
