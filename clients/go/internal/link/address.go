package link

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// SplitAddress gives host and port of HOST:PORT or [V6ADDRESS]:PORT.
func SplitAddress(address string) (host, port string, err error) {
	at := strings.LastIndexByte(address, ':')
	if at < 0 {
		at = 0
	}
	host = strings.TrimSuffix(strings.TrimPrefix(address[:at], "["), "]")
	port = strings.TrimPrefix(address[at:], ":")
	if _, wrong := strconv.ParseUint(port, 10, 16); wrong != nil || host == "" {
		return "", "", fmt.Errorf("%q is no address; write HOST:PORT, such as fl.example.org:8443", address)
	}
	return host, port, nil
}

// JoinAddress gives HOST:PORT, or [V6ADDRESS]:PORT.
func JoinAddress(host, port string) string { return net.JoinHostPort(host, port) }

// IsLoopback says whether only this machine can reach host.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
