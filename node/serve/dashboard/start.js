paint();
follow();
every(LINKS_MS, "/api/links", (rows) => { links = rows.slice(0, MAX_PEERS); drawMap(); });
every(TREE_MS, "/api/tree", drawTree);
every(MODELS_MS, "/api/models", drawModels);
every(USAGE_MS, `/api/usage?days=${USAGE_DAYS}`, drawUsage);
