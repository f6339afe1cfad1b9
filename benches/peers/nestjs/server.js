// The member list as one would write it with NestJS on its Fastify adapter, with a `pg` pool per organisation: the tenant's token
// verified (and remembered while it lives), the bearer looked up, the permission checked, twenty rows read, a cursor made.
require("reflect-metadata");
const { createHash, createHmac, createPublicKey, verify } = require("node:crypto");
const { Controller, Get, HttpException, Injectable, Module, Req, Query } = require("@nestjs/common");
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

class Members {
  async list(c, bearer, limit) {
    const db = pool(c), hash = createHash("sha256").update(Buffer.from(c.sub.replaceAll("-", ""), "hex")).update(bearer).digest();
    const user = await db.query({ name: "session", values: [hash], text: env.session });
    if (!user.rows.length) refuse(401, "unauthenticated");
    const may = (p) => p === "*" || p === "*.read" || p === "members.*" || p === "members.read";
    if (!user.rows[0].permissions.some(may)) refuse(403, "forbidden");
    const { rows } = await db.query({ name: "members", values: ["00000000-0000-0000-0000-000000000000", limit + 1], text: env.members });
    const items = rows.slice(0, limit), last = items.at(-1);
    const cursor = rows.length > limit ? Buffer.from(last.id + createHmac("sha256", "key").update(c.sub + last.id).digest("hex")).toString("base64url") : null;
    return { items, next_cursor: cursor };
  }
}
Injectable()(Members);

class MembersController {
  constructor(members) { this.members = members; }
  show(request, query) {
    const c = tenant(request), limit = Number(query.limit ?? 50);
    if (!(limit >= 1 && limit <= 200)) refuse(422, "invalid");
    return this.members.list(c, (request.headers.authorization ?? "").slice(7), limit);
  }
}
Reflect.defineMetadata("design:paramtypes", [Members], MembersController);
Controller("api/v1/members")(MembersController);
Req()(MembersController.prototype, "show", 0);
Query()(MembersController.prototype, "show", 1);
decorate(MembersController, "show", Get());
class App {}
Module({ controllers: [MembersController], providers: [Members] })(App);

NestFactory.create(App, new FastifyAdapter(), { logger: ["error"] }).then((app) => app.listen(env.port, "127.0.0.1"));
