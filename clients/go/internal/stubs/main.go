// Command stubs generates the Go code of the contract: `stubs PROTOS_FOLDER OUT_FOLDER`.
//
// Neither protoc nor Python is needed: the compiler is a Go library, and the two plugins are tools whose versions go.mod
// pins. The protos name no Go package, since they are no language's; the plugins are told by parameters.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

const goPackage = "fedstream/client/internal/pb"

// What a client needs; administration is not for clients.
var files = []string{
	"fedstream/v1/common.proto",
	"fedstream/v1/enrolment.proto",
	"fedstream/v1/errors.proto",
	"fedstream/v1/negotiation.proto",
	"fedstream/v1/transfer.proto",
}

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: stubs PROTOS_FOLDER OUT_FOLDER"))
	}
	descriptors, err := compile(os.Args[1])
	if err != nil {
		fail(err)
	}
	for _, plugin := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
		if err := generate(plugin, descriptors, os.Args[2]); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "stubs:", err)
	os.Exit(1)
}

// compile gives the files and all that they import, each after what it imports.
func compile(folder string) ([]*descriptorpb.FileDescriptorProto, error) {
	sources := &protocompile.SourceResolver{ImportPaths: []string{folder}}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(sources),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments go into the code
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return nil, err
	}
	return inOrder(compiled), nil
}

func inOrder(compiled linker.Files) []*descriptorpb.FileDescriptorProto {
	var ordered []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(file protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		ordered = append(ordered, protodesc.ToFileDescriptorProto(file))
	}
	for _, file := range compiled {
		add(file)
	}
	return ordered
}

// generate runs a plugin as protoc does: a request on its standard input, files in its answer.
func generate(plugin string, descriptors []*descriptorpb.FileDescriptorProto, out string) error {
	parameters := []string{"module=" + goPackage}
	for _, file := range files {
		parameters = append(parameters, "M"+file+"="+goPackage)
	}
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: files,
		Parameter:      proto.String(strings.Join(parameters, ",")),
		ProtoFile:      descriptors,
	})
	if err != nil {
		return err
	}
	command := exec.Command("go", "tool", plugin)
	command.Stdin, command.Stderr = bytes.NewReader(request), os.Stderr
	written, err := command.Output()
	if err != nil {
		return fmt.Errorf("go tool %s: %w", plugin, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(written, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s: %s", plugin, response.GetError())
	}
	for _, file := range response.File {
		if err := os.WriteFile(filepath.Join(out, filepath.Base(file.GetName())), []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
