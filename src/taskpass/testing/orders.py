"""The sample database of the demo and the tests: a small shop whose customers are invented.

Personal data stands in ``shop.customers`` and can be read through the view ``shop.customer_orders`` and the
materialised view ``shop.best_customers``; ``shop.order_events`` is partitioned by month. Not a benchmark's schema.
"""

from __future__ import annotations

from typing import Any

import psycopg

from taskpass.core.errors import InvalidInput

SCHEMA = "shop"
OWNER = "orders_owner"
"""Owns everything and cannot log in."""
APP = "orders_app"
"""The application's login: reads and writes, owns nothing. It has no password until somebody sets one."""


def load(connection: psycopg.Connection[Any], *, orders: int = 100_000) -> None:
    """Create roles, schema and data in the connected, empty database, in one transaction, as a superuser.

    The same number of ``orders`` gives the same rows everywhere. Roles that exist already are kept. Raises
    ``InvalidInput`` for fewer than ten orders; errors of the driver come through.
    """
    if orders < 10:
        raise InvalidInput("the sample database needs at least ten orders")
    with connection.transaction():
        connection.execute(_ROLES.encode())
        connection.execute(_PLACE.encode())
        connection.execute(_TABLES.encode())
        for statement in _ROWS:
            connection.execute(statement.encode(), {"orders": orders, "customers": max(orders // 20, 5)})
        connection.execute(_OVER_THEM.encode())
    connection.execute(_ANALYSE.encode())


_ROLES = """
DO $do$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'orders_owner') THEN CREATE ROLE orders_owner NOLOGIN; END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'orders_app') THEN CREATE ROLE orders_app LOGIN; END IF;
END $do$
"""

_PLACE = """
CREATE SCHEMA shop AUTHORIZATION orders_owner;
SET LOCAL ROLE orders_owner;
SET LOCAL search_path = shop;
SET LOCAL timezone = 'UTC'
"""

_ANALYSE = "ANALYZE shop.customers, shop.orders, shop.items, shop.payments, shop.order_events, shop.best_customers"

_TABLES = """
CREATE TABLE customers (
    id integer PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE, phone text NOT NULL,
    birth_date date NOT NULL, iban text NOT NULL, joined_on date NOT NULL);
CREATE TABLE orders (
    id integer NOT NULL, customer_id integer NOT NULL, placed_at timestamptz NOT NULL,
    status text NOT NULL, total_cents integer NOT NULL, note text);
CREATE TABLE items (
    order_id integer NOT NULL, line integer NOT NULL, sku text NOT NULL, quantity integer NOT NULL,
    price_cents integer NOT NULL);
CREATE TABLE payments (
    id integer NOT NULL, order_id integer NOT NULL, method text NOT NULL, amount_cents integer NOT NULL,
    paid_at timestamptz NOT NULL);
CREATE TABLE order_events (order_id integer NOT NULL, at timestamptz NOT NULL, event text NOT NULL)
    PARTITION BY RANGE (at);
CREATE TABLE order_events_2026_01 PARTITION OF order_events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE order_events_2026_02 PARTITION OF order_events FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE order_events_2026_03 PARTITION OF order_events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
"""

# Orders are spread evenly over January to March 2026. 555-01xx numbers and .example addresses are nobody's.
_ROWS = (
    """
INSERT INTO customers
SELECT n,
       (ARRAY['Ada', 'Bela', 'Chidi', 'Dana', 'Emre', 'Freya', 'Goran', 'Hana', 'Ines', 'Juno'])[1 + n %% 10] || ' '
       || (ARRAY['Ahorn', 'Birke', 'Cedar', 'Dorn', 'Esche', 'Fichte', 'Ginkgo'])[1 + n %% 7],
       'customer' || n || '@mail.example', '+1 555 01' || lpad((n %% 100)::text, 2, '0'),
       date '1950-01-01' + (n * 37) %% 20000, 'XX' || lpad((n %% 97)::text, 2, '0') || 'TEST' || lpad(n::text, 14, '0'),
       date '2020-01-01' + n %% 2000
FROM generate_series(1, %(customers)s::int) n
""",
    """
INSERT INTO orders
SELECT n, 1 + (n::bigint * 7919 %% %(customers)s::int)::int,
       timestamptz '2026-01-01' + n * (interval '90 days' / %(orders)s::int) - interval '1 second',
       (ARRAY['placed', 'paid', 'sent', 'delivered', 'returned'])[1 + n %% 5], 500 + n * 131 %% 20000,
       CASE WHEN n %% 50 = 0 THEN 'please ring twice' END
FROM generate_series(1, %(orders)s::int) n
""",
    """
INSERT INTO items
SELECT n, line, 'SKU-' || lpad(((n * 31 + line) %% 500)::text, 4, '0'), 1 + n %% 3, 250 + (n * 131 + line) %% 9000
FROM generate_series(1, %(orders)s::int) n, generate_series(1, 2) line
""",
    """
INSERT INTO payments
SELECT id, id, (ARRAY['card', 'transfer', 'invoice'])[1 + id %% 3], total_cents, placed_at + interval '1 hour'
FROM orders WHERE id %% 10 <> 0
""",
    """
INSERT INTO order_events
SELECT id, placed_at, 'placed' FROM orders
""",
)

_OVER_THEM = """
ALTER TABLE orders ADD PRIMARY KEY (id), ADD FOREIGN KEY (customer_id) REFERENCES customers;
ALTER TABLE items ADD PRIMARY KEY (order_id, line), ADD FOREIGN KEY (order_id) REFERENCES orders;
ALTER TABLE payments ADD PRIMARY KEY (id), ADD FOREIGN KEY (order_id) REFERENCES orders;
CREATE INDEX ON orders (customer_id);
CREATE VIEW customer_orders AS
    SELECT o.id, o.placed_at, o.status, o.total_cents, c.name, c.email, c.phone
    FROM orders o JOIN customers c ON c.id = o.customer_id;
CREATE MATERIALIZED VIEW best_customers AS
    SELECT c.id, c.name, c.email, sum(o.total_cents)::bigint AS spent_cents, count(*)::int AS orders
    FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY c.id ORDER BY spent_cents DESC, c.id LIMIT 1000;
GRANT USAGE ON SCHEMA shop TO orders_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA shop TO orders_app;
"""
