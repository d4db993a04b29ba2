"""PostgreSQL: connections, migrations, COPY from columns, leases and the commit counter."""
