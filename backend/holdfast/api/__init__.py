"""The ways in: WebSocket, HTTP and the page. Only this package knows status codes and close codes."""
