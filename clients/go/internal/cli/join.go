package cli

import (
	"io"
	"os"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/identity"
	"fedstream/client/internal/link"
	"fedstream/client/internal/token"
)

const joinHelp = `Usage: fedstream-client join [HOST:PORT] --token TOKEN [OPTIONS]

Join a federation, once, with the token that its coordinator has sent. HOST:PORT is the server as this site reaches it
[as the token says]. This site's private key is made here and never leaves this machine. If it breaks off, run it again with
the same token. A token on the command line is seen by other users of this machine: --token - and --token-file are not.

`

type joining struct {
	token             *token.Token
	server, enrolment string
	folder            identity.Folder
	isElsewhere       bool // than where every site's identity is by default
}

func readJoin(words []string, input io.Reader) (*joining, error) {
	flags := newFlags("join", joinHelp)
	text := flags.String("token", "", "the token from the coordinator; - to read it from standard input")
	file := flags.String("token-file", "", "a `FILE` with the token, or with all that fedserver invite printed")
	enrolment := flags.String("enrolment", "", "`HOST:PORT` where to join, if that is elsewhere than the token says")
	folder := flags.String("identity", "", "`DIR` for this site's key [~/.local/state/fedstream/identity]")
	places, err := parse(flags, words)
	if err != nil {
		return nil, err
	}
	if len(places) > 1 {
		return nil, fault.Stopf(fault.BadConfiguration, "give one address, not %d", len(places))
	}
	asked := &joining{folder: identity.Default(), isElsewhere: *folder != ""}
	if asked.isElsewhere {
		asked.folder = identity.Folder{Path: *folder}
	}
	if asked.token, err = readToken(*text, *file, input); err != nil {
		return nil, err
	}
	asked.server, asked.enrolment = asked.token.Server, asked.token.Enrolment
	if len(places) == 1 {
		if err := asked.reachedAt(places[0]); err != nil {
			return nil, err
		}
	}
	if *enrolment != "" {
		asked.enrolment = *enrolment
	}
	for _, address := range []string{asked.server, asked.enrolment} {
		if _, _, err := link.SplitAddress(address); err != nil {
			return nil, fault.Stopf(fault.BadConfiguration, "%v", err)
		}
	}
	return asked, nil
}

// reachedAt says where the operator reaches the server: enrolment is on the same host then, at the port that the token has.
func (j *joining) reachedAt(server string) error {
	host, _, err := link.SplitAddress(server)
	if err != nil {
		return fault.Stopf(fault.BadConfiguration, "%v", err)
	}
	_, port, err := link.SplitAddress(j.token.Enrolment)
	j.server, j.enrolment = server, link.JoinAddress(host, port)
	return err
}

func readToken(text, file string, input io.Reader) (*token.Token, error) {
	if (text == "") == (file == "") {
		return nil, fault.Stopf(fault.BadConfiguration, "give the token with --token or with --token-file")
	}
	var err error
	if file != "" {
		var content []byte
		content, err = os.ReadFile(file)
		text = string(content)
	} else if text == "-" {
		text, err = readAll(input)
	}
	if err != nil {
		return nil, fault.Stopf(fault.BadConfiguration, "the token cannot be read: %v", err)
	}
	read, err := token.Decode(text)
	if err != nil {
		return nil, fault.Stopf(fault.BadConfiguration, "%v", err)
	}
	return read, nil
}
