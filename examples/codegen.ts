// Types and documents for TypeScript: graphql-codegen's client preset.
import type { CodegenConfig } from '@graphql-codegen/cli';

const config: CodegenConfig = {
  schema: '../schema.graphql',
  documents: ['operations/*.graphql', 'replica/operations/*.graphql'],
  generates: {
    'generated/graphql/': {
      preset: 'client',
      presetConfig: { fragmentMasking: false },
      config: {
        enumsAsTypes: true,
        immutableTypes: true,
        useTypeImports: true,
        strictScalars: true,
        scalars: {
          BigInt: 'number',
          ByteSize: { input: 'number | string', output: 'number' },
          Cursor: 'string',
          DateTime: 'string',
          Duration: 'string',
          EmailAddress: 'string',
          CIDR: 'string',
          IPAddress: 'string',
          JSON: 'unknown',
          URL: 'string',
          Upload: 'string',
        },
      },
    },
  },
};

export default config;
